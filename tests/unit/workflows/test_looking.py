"""Page and contact sheet of a data set, in every format."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.dataset_formats import write_voc, write_yolo
from PIL import Image

from deformable_detr.reporting.data_findings import DataFindings, Split
from deformable_detr.reporting.data_page import CELLS, center_map, charts
from deformable_detr.workflows.datasets.looking import describe_data, show_data


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return write_coco_set(tmp_path / "set", num_images=5, empty=(2,))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


def test_numbers_follow_from_the_boxes() -> None:
    boxes = [[0, 0, 10, 10], [10, 0, 50, 10], [299, 399, 300, 400], *[[150, 200, 180, 320]] * 101]
    split = Split(
        "train",
        ["a.png", "b.png"],
        np.array([[100, 200], [400, 300]]),
        np.array([2, 102]),
        np.array(boxes, np.float32),
        np.array([0, 0, 2, *[1] * 101]),
        short_side=100,
    )
    found = DataFindings("YOLO", [split], ["red", "blue", "odd"], [])
    assert found.class_counts == {"blue": (101,), "red": (2,), "odd": (1,)}
    assert found.rare_classes == ["red", "odd"]
    assert found.densest == ("b.png", 102)
    assert found.num_crowded == 1
    assert split.seen_px[:4].tolist() == pytest.approx([10, 20, 1 / 3, 20])
    assert found.num_small == 2
    assert found.image_sizes == [("200 x 100", 1), ("300 x 400", 1)]
    sizes, numbers, shapes = charts(found)
    bars = {stack.label: stack.parts[0] for stack in sizes.stacks}
    assert (bars["<8"], bars["8"], bars["16"]) == (1, 1, 102)
    for chart, expected in (
        (numbers, {"2": 1, "100": 1}),
        (shapes, {"1:3": 101, "1:1": 2, "3:1": 1}),
    ):
        assert {one.label: one.parts[0] for one in chart.stacks if one.parts[0]} == expected
    cells = center_map(found)
    assert cells.sum() == 104
    assert cells[-1, -1] == 1
    assert cells[int(260 / 400 * CELLS), int(165 / 300 * CELLS)] == 101
    assert max(map(len, found.lines())) <= 80


def test_objects_of_crops_have_the_size_that_the_model_sees(tmp_path: Path) -> None:
    """An image that training cuts into crops, as large as those of evaluation."""
    for split, (size, boxes) in {"train": (1024, 64), "val": (128, 1)}.items():
        (tmp_path / split).mkdir()
        Image.new("RGB", (size, size)).save(tmp_path / split / "a.png")
        places = [(16 * n % 1000, 0) for n in range(boxes)]
        record = {
            "images": [{"id": 1, "file_name": "a.png", "height": size, "width": size}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, y, 24, 24], "iscrowd": 0}
                for n, (x, y) in enumerate(places, 1)
            ],
            "categories": [{"id": 1, "name": "tree"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(record))
    train, val = describe_data(tmp_path, tmp_path / "page.html").splits
    assert np.median(train.seen_px) == pytest.approx(np.median(val.seen_px), rel=0.05)
    train, val = describe_data(tmp_path, tmp_path / "page.html", size=512).splits
    assert (np.median(train.seen_px), np.median(val.seen_px)) == pytest.approx((12, 96))


def test_what_training_leaves_out_is_counted_and_not_drawn(
    run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    before = describe_data(files.annotations, tmp_path / "page.html").num_objects
    record = files.read()
    record["annotations"][0]["iscrowd"] = 1
    record["annotations"][1]["bbox"][2] = 0
    files.write(record)
    found = describe_data(files.annotations, tmp_path / "page.html")
    assert found.num_objects == before - 2
    assert found.left_out == [
        "left out, crowd in train: 1",
        "left out, degenerate in train: 1",
    ]


@pytest.mark.parametrize("write", [write_yolo, write_voc])
def test_page_of_every_format_has_the_same_numbers(
    write: object, run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    folder = write(tmp_path / "photos", train=files)  # type: ignore[operator]
    outcome = run("data", "stats", folder, "--out", tmp_path / "page.html", "--size", "48")
    assert outcome.code == 0, outcome.err
    objects = len(files.read()["annotations"])
    assert f"train: 5 images, {objects} objects, 1 images without any" in outcome.out
    page = (tmp_path / "page.html").read_text()
    for text in ("<h1>photos</h1>", "red thing", "blue thing", "0001.png"):
        assert text in page
    assert page.count("data:image/jpeg") == 5
    for outside in ("http:", "https:", "<script", "<link"):
        assert outside not in page.replace("http://www.w3.org", "")
    again = run("data", "stats", folder, "--out", tmp_path / "page.html")
    assert again.code == 0, again.err  # the preset chooses the size


def test_sheet_has_as_many_images_as_wanted(
    run: CommandLine, files: CocoFiles, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    command = ("data", "show", files.annotations, "--out", sheet)
    assert run(*command).out.startswith("5 images: ")
    with Image.open(sheet) as picture:
        whole = picture.width
    assert run(*command, "--count", "4", "--seed", "3").out.startswith("4 images: ")
    with Image.open(sheet) as picture:
        assert picture.width < whole
    record = files.read()
    record["annotations"] = [one for one in record["annotations"] if one["image_id"] == 1]
    for one in record["annotations"]:
        one["category_id"] = record["categories"][0]["id"]
    files.write(record)
    name = record["categories"][0]["name"]
    assert run(*command, "--class", name).out.startswith("1 image: ")
    other = record["categories"][1]["name"]
    assert "must have an image to show, got none" in run.fails(*command, "--class", other)
    assert "class must be one of" in run.fails(*command, "--class", "cat")
    assert "out must end with .jpg or .png" in run.fails(*command[:-1], tmp_path / "sheet")


def test_arrays_of_several_channels_are_shown(files: CocoFiles, tmp_path: Path) -> None:
    record = files.read()
    for entry in record["images"]:
        entry["file_name"] = entry["file_name"].replace(".png", ".npy")
        shape = (entry["height"], entry["width"], 5)
        np.save(files.images / entry["file_name"], np.full(shape, 200, np.uint8))
    files.write(record)
    assert show_data(files.annotations, tmp_path / "sheet.png") == 5
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (200, 200, 200) in {color for _, color in sheet.getcolors(maxcolors=1 << 20)}


def test_outputs_do_not_replace_inputs_or_files_of_the_user(
    files: CocoFiles, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"out must end with \.html"):
        describe_data(files.annotations, files.annotations, overwrite=True)
    image = files.images / "0001.png"
    before = image.read_bytes()
    with pytest.raises(ValueError, match="must not replace an input"):
        show_data(files.annotations, image, overwrite=True)
    assert image.read_bytes() == before
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="overwrite"):
        show_data(files.annotations, tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    record = files.read()
    record["annotations"][0]["bbox"] = ["a", 1, 1, 1]
    files.annotations.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"annotations\[0\]"):
        show_data(files.annotations, tmp_path / "sheet.png")


def test_images_that_are_missing_or_broken_are_named(files: CocoFiles, tmp_path: Path) -> None:
    image = files.images / "0001.png"
    image.write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"0001\.png"):
        show_data(files.annotations, tmp_path / "sheet.png")
    image.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"0001\.png"):
        describe_data(files.annotations, tmp_path / "page.html")
