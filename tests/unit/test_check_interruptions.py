"""`scripts/check_interruptions.py`: a small sample of it, and that it notices harm."""

import io
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer.main
from helpers.scripts import load_script
from interruptions import ways
from interruptions.commands import COMMANDS
from interruptions.material import Material
from interruptions.place import FOREIGN, CheckError, Place, tree
from interruptions.ways import Ended, start, state_of

from deformable_detr.cli.main import app, main
from deformable_detr.data.found_photos import find_photos
from deformable_detr.files import partial_path

check = load_script("check_interruptions")
INPUTS: dict[str, str] = {}


def start_here(line: Sequence[str], watched: Path) -> Ended:
    """Run a command in this process, which has imported the package."""
    output = io.StringIO()
    begin = time.time()
    with (
        redirect_stdout(output),
        redirect_stderr(output),
        patch.object(sys, "argv", line[2:]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    times = [status[1] / 1e9 - begin for status in state_of(watched).values()]
    wrote = sorted(one for one in times if one > 0)
    return Ended(end.value.code or 0, output.getvalue(), time.time() - begin, wrote[0], wrote[-1])


def test_an_interrupted_prediction_harms_nothing_and_is_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed one is a real process; other commands, ways and moments are for the script."""
    monkeypatch.setenv("PYTHONPATH", str(Path(check.__file__).parents[1]))
    monkeypatch.setattr(check, "start", start_here)
    monkeypatch.setattr(Material, "write", partial(Material.write, num_images=12))
    arguments = ["--out", str(tmp_path), "--commands", "predict", "--ways", "kill"]
    code = check.main([*arguments, "--trials", "1", "--seed", "2"])  # early: at a tenth
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.count("continues\n") == 1
    assert out.endswith("0 of 1 trials failed; 0 more came after the end\n")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    material = Material(tmp_path / "material", tmp_path / "wheels")
    place = Place("predict", material, tmp_path / "out")
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
        (FOREIGN, "yours", "a foreign file has changed"),
        (".a.json.partial", "[1", None),
        ("a.partial.jsonl", '{}\n{"a', None),
    ],
)
def test_what_cannot_be_read_is_noticed(
    place: Place, name: str, content: str, message: str | None
) -> None:
    file = place.out / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    killed = Ended(-9, "", 1.0)
    if message is None:
        check.check_trial(place, "kill", killed, INPUTS)
    else:
        with pytest.raises(CheckError, match=message):
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
    place: Place, way: str, code: int, text: str, message: str
) -> None:
    with pytest.raises(CheckError, match=message):
        check.check_trial(place, way, Ended(code, text, 1.0), INPUTS)


def test_an_interruption_after_the_end_is_counted_apart(place: Place) -> None:
    (place.out / "found").mkdir()
    result = place.out / "found" / "detections.json"
    result.write_text("[]")
    names, expected = set(tree(place.out)), place.content()
    assert check.came_late(place, names, expected)

    rest = place.out / "found" / "detections.json.partial.jsonl"
    rest.write_text("{}\n")
    assert not check.came_late(place, names, expected)
    rest.unlink()
    result.write_text("[1]")
    assert not check.came_late(place, names, expected)

    counts = Counter({("kill", check.CONTINUES): 2, ("kill", check.LATE): 3})
    counts["Ctrl-C", check.FAILURE] = 1
    last = check.table({"predict": counts}, ["kill", "Ctrl-C", "full disk"]).splitlines()[-1]
    assert last == "| `predict` | 2 + 3 | 1 | 0 | 1 |"


def test_a_process_that_outlives_its_command_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "OUTLIVES_S", 0.1)
    with pytest.raises(CheckError, match="is alive"):
        start(["sh", "-c", "sleep 60 &"], tmp_path)


def commands_that_write(command: Any, *names: str) -> list[str]:
    """Return the names of the commands that have a parameter for a place to write to."""
    if hasattr(command, "commands"):
        inner = command.commands.items()
        return [one for name, sub in inner for one in commands_that_write(sub, *names, name)]
    parameters = {parameter.name for parameter in command.params}
    return [" ".join(names)] if parameters & {"out", "run_dir", "fix"} else []


def test_every_command_that_writes_is_tried() -> None:
    names = commands_that_write(typer.main.get_command(app))
    assert len(names) > 5
    tried = [f"{name} " for name in COMMANDS]
    assert [name for name in names if not any(one.startswith(f"{name} ") for one in tried)] == []


def test_a_changed_input_is_noticed(place: Place) -> None:
    with pytest.raises(CheckError, match="an input has changed"):
        check.check_trial(place, "kill", Ended(-9, "", 1.0), {"images/001.png": "hash"})


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
