"""Conversion between formats, there and back, and splitting."""

import json
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.dataset_formats import write_yolo
from helpers.shared_data import shared_data

from deformable_detr.dataset_formats.recognition import recognize_data
from deformable_detr.workflows.datasets.conversion import convert_data, split_data
from deformable_detr.workflows.doctor.data_check import check_data


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=5, empty=(2,))


def content(path: Path) -> dict[str, list[tuple[str, int, list[float]]]]:
    """Return file name, label and box of each object by set, and the names of the images."""
    found = {}
    for split, one in recognize_data(path).open_all().items():
        one.require_sound()
        labels = {key: n for n, key in enumerate(sorted(c["id"] for c in one.record["categories"]))}
        names = {image["id"]: image["file_name"] for image in one.record["images"]}
        rows = [
            (names[entry["image_id"]], labels[entry["category_id"]], entry["bbox"])
            for entry in one.record["annotations"]
        ]
        found[split] = sorted(rows) + [(name, -1, []) for name in sorted(names.values())]
    return found


@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_each_format_is_converted_to_each_other_without_a_change(
    to: str, run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    outcome = run("data", "convert", files.annotations, tmp_path / "a", "--to", to)
    assert outcome.code == 0, outcome.err
    number = len(files.read()["annotations"])
    assert outcome.out.splitlines()[0] == f"train: 5 images, {number} objects"
    for other in ("coco", "yolo", "voc"):
        back = convert_data(tmp_path / "a", tmp_path / other, to=other)  # type: ignore[arg-type]
        assert content(back.path) == content(files.annotations)


def test_real_boxes_are_the_same_in_every_format(tmp_path: Path) -> None:
    nuclei = shared_data("nuclei200")
    for to in ("yolo", "voc"):
        convert_data(nuclei, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert content(tmp_path / to) == content(nuclei)


def test_classes_keep_their_order_against_the_alphabet(tmp_path: Path) -> None:
    files = write_coco_set(tmp_path / "set", categories={1: "zebra", 2: "ant"})
    for to in ("yolo", "voc"):
        written = convert_data(files.annotations, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert content(written.path) == content(files.annotations)
        record = recognize_data(written.path).open_all()["train"].record
        assert [one["name"] for one in record["categories"]] == ["zebra", "ant"]


def test_regions_to_ignore_are_difficult_in_voc_and_refused_in_yolo(
    files: CocoFiles, tmp_path: Path
) -> None:
    record = files.read()
    record["annotations"][0]["iscrowd"] = 1
    files.write(record)
    with pytest.raises(ValueError, match=r"YOLO has no regions to ignore, got 1 annotations"):
        convert_data(files.annotations, tmp_path / "yolo", to="yolo")
    assert not (tmp_path / "yolo").exists()
    convert_data(files.annotations, tmp_path / "voc", to="voc")
    found = recognize_data(tmp_path / "voc").open_all()["train"].record["annotations"]
    assert sum(one["iscrowd"] for one in found) == 1


def test_names_that_a_format_cannot_tell_apart_are_refused(
    files: CocoFiles, tmp_path: Path
) -> None:
    record = files.read()
    twin = files.images / "0001.bmp"
    twin.write_bytes((files.images / "0001.png").read_bytes())
    record["images"].append(record["images"][0] | {"id": 99, "file_name": twin.name})
    files.write(record)
    with pytest.raises(ValueError, match=r"without their suffixes, got 0001.png and 0001.bmp"):
        convert_data(files.annotations, tmp_path / "voc", to="voc")


@pytest.mark.parametrize(
    ("to", "box", "message"),
    [
        (
            "yolo",
            [-40.0, 10.0, 60.0, 20.0],
            r"inside their image in yolo, got \[-40.0, .* 0001",
        ),
        ("yolo", [10.0, 10.0, -5.0, 20.0], r"(inside|at least 0).* in yolo"),
        ("voc", [10.0, 10.0, -5.0, 20.0], r"at least 0 wide and high in voc, got .* in 0001.png"),
    ],
)
def test_boxes_that_could_not_be_read_again_are_refused(
    to: str, box: list[float], message: str, files: CocoFiles, tmp_path: Path
) -> None:
    record = files.read()
    record["annotations"][0] |= {"bbox": box, "image_id": record["images"][0]["id"]}
    files.write(record)
    with pytest.raises(ValueError, match=message):
        convert_data(files.annotations, tmp_path / to, to=to)  # type: ignore[arg-type]
    assert not (tmp_path / to).exists()


def test_split_writes_both_sets_in_the_same_format(
    run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    data = write_yolo(tmp_path / "data", train=files)
    command = ("data", "split", data, tmp_path / "out", "--val-fraction", "0.4")
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    parts = content(tmp_path / "out")
    assert {*parts} == {"train", "val"}
    rows = [row for part in parts.values() for row in part]
    assert sorted(rows) == sorted(content(data)["train"])
    assert run(*command).err.startswith("error: out must be a new folder")
    with pytest.raises(ValueError, match="must have no validation set"):
        split_data(tmp_path / "out", tmp_path / "again")


def test_doctor_names_file_and_line_of_other_formats(
    run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    data = write_yolo(tmp_path / "data", train=files, val=files)
    assert run("doctor", "data", data).code == 1  # the same images in both sets
    labels = data / "labels" / "train" / "0001.txt"
    labels.write_text("0 .5 .5 .2 .2\n0 a b c d\n9 .5 .5 .1 .1\n0 .5 .5 0 .1\n")
    outcome = run("doctor", "data", data, "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)["findings"]
    unread = [one["message"] for one in found if one["kind"] == "label-entry"]
    assert [one.partition(" line ")[2][:2] for one in unread] == ["2:", "3:"]
    placed = [one["message"] for one in found if "line 4: " in one["message"]]
    assert placed
    assert all(str(labels) in message for message in placed)
    with pytest.raises(ValueError, match=r"fix must be None for data other than"):
        check_data(data, fix=tmp_path / "fixed")
