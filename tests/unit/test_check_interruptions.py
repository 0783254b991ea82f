"""`scripts/check_interruptions.py`: a small sample of it, and that it notices harm."""

from pathlib import Path

import pytest
from helpers.scripts import load_script

from deformable_detr.data.found_photos import find_photos
from deformable_detr.files import partial_path

check = load_script("check_interruptions")
INPUTS: dict[str, str] = {}


def test_an_interrupted_prediction_harms_nothing_and_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three real processes; other commands, ways and moments are left to the script."""
    root = Path(check.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(root))
    arguments = ["--out", str(tmp_path), "--commands", "predict", "--ways", "kill"]
    code = check.main([*arguments, "--trials", "1"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.count("continues\n") == 1
    assert out.endswith("0 of 1 trials failed\n")


@pytest.fixture
def place(tmp_path: Path) -> object:
    place = check.Place("predict", check.Material(tmp_path / "material"), tmp_path / "out")
    place.prepare()
    return place


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2", "a.json cannot be read"),
        ("a.jsonl", "{}\n[\n{}", "a.jsonl cannot be read"),
        ("run/last.pth", "PK", r"run/last\.pth cannot be read"),
        ("b.png", "\x89PNG", r"b\.png cannot be read"),
        ("report.html", "<html>", "report.html cannot be read"),
        (check.FOREIGN, "yours", "a foreign file has changed"),
        (".a.json.partial", "[1", None),
        ("a.partial.jsonl", '{}\n{"a', None),
    ],
)
def test_what_cannot_be_read_is_noticed(
    place: object, name: str, content: str, message: str | None
) -> None:
    file = place.out / name  # type: ignore[attr-defined]
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    killed = check.Ended(-9, "", 1.0)
    if message is None:
        check.check_trial(place, "kill", killed, INPUTS)
    else:
        with pytest.raises(check.CheckError, match=message):
            check.check_trial(place, "kill", killed, INPUTS)


@pytest.mark.parametrize(
    ("way", "code", "text", "message"),
    [
        ("kill", -9, "Traceback (most recent call last)", "traceback"),
        ("Ctrl-C", 1, "", "exit code 1"),
        ("full disk", 1, "", "exit code 1"),
        ("full disk", 2, "error: No space left on device", "the error names no file"),
    ],
)
def test_an_end_without_a_clear_word_is_noticed(
    place: object, way: str, code: int, text: str, message: str
) -> None:
    with pytest.raises(check.CheckError, match=message):
        check.check_trial(place, way, check.Ended(code, text, 1.0), INPUTS)


def test_a_changed_input_is_noticed(place: object) -> None:
    with pytest.raises(check.CheckError, match="an input has changed"):
        check.check_trial(place, "kill", check.Ended(-9, "", 1.0), {"images/001.png": "hash"})


def test_a_file_of_a_killed_process_is_not_taken_for_an_image(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    partial_path(image).write_bytes(b"")
    (tmp_path / "detections.json.partial.jsonl").write_text("")
    assert find_photos([tmp_path]) == [image]


def test_an_unknown_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        check.main(["--out", str(tmp_path / "new"), "--commands", "predict,fly"])
    assert not (tmp_path / "new").exists()
