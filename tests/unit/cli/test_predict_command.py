import inspect
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import CommandLine
from helpers.tiny_checkpoint import LABEL_SPACE
from PIL import Image

import deformable_detr
from deformable_detr.cli.evaluate import evaluate
from deformable_detr.cli.predict import predict
from deformable_detr.data.found_photos import find_photos
from deformable_detr.detector import DEFAULT_THRESHOLD
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.files.output_folder import MANIFEST
from deformable_detr.workflows.prediction import picture_names

PER_PHOTO = 15  # 5 queries, 3 classes


def _photo(path: Path, width: int = 64, height: int = 48, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder of three images and a text file."""
    folder = tmp_path / "photos"
    _photo(folder / "b.jpg")
    _photo(folder / "a.png", 40, 60, "RGBA")
    _photo(folder / "c.tif", mode="L")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_images_are_drawn_and_their_detections_written(
    run: CommandLine, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"

    outcome = run("predict", photos, "--checkpoint", checkpoint, "--out", out, "--threshold", "0")

    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{3 * PER_PHOTO} objects in 3 images, see {out}\n"
    names = [MANIFEST, "a.png", "b.jpg", "c.png", "detections.json"]
    assert sorted(file.name for file in out.iterdir()) == names
    results = json.loads((out / "detections.json").read_text())
    files = [(photos / name).as_posix() for name in ("a.png", "b.jpg", "c.tif")]
    assert [result["file_name"] for result in results[::PER_PHOTO]] == files
    assert [result["image_id"] for result in results[::PER_PHOTO]] == [1, 2, 3]
    for result in results:
        label = LABEL_SPACE.names.index(result["category_name"])
        assert result["category_id"] == LABEL_SPACE.category_ids[label]
        assert len(result["bbox"]) == 4
        assert 0 <= result["score"] <= 1
    with Image.open(out / "a.png") as picture:  # enlarged, so that boxes can be seen
        assert picture.width > 500
        assert picture.width * 60 == picture.height * 40


def test_threshold_and_classes_filter_the_detections(
    run: CommandLine, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out")

    run("predict", photos / "b.jpg", *options, "--threshold", "0", "--classes", "dog, tree")

    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["category_name"] for result in results} == {"dog", "tree"}
    assert len(results) == 10

    outcome = run("predict", photos / "b.jpg", *options, "--threshold", "1")

    assert outcome.out.startswith("0 objects in 1 image, see")
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []


def test_an_unreadable_image_is_named_and_the_others_are_processed(
    run: CommandLine, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "a.png").write_bytes(b"broken")
    out = tmp_path / "out"

    outcome = run("predict", photos, "--checkpoint", checkpoint, "--out", out)

    assert outcome.code == 2
    assert outcome.out == f"0 objects in 2 images, see {out}; 1 of 3 could not be read\n"
    assert "1 of 3 images could not be read; the others were processed" in outcome.err
    assert f"image {photos / 'a.png'} must be a readable image" in outcome.err
    assert sorted(file.name for file in out.glob("*g")) == ["b.jpg", "c.png"]
    assert (out / "detections.json").is_file()


@pytest.mark.parametrize("count", [1, 7])
def test_if_no_image_can_be_read_there_are_no_results(
    run: CommandLine, checkpoint: Path, tmp_path: Path, count: int
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(count)]
    for file in files:
        file.write_bytes(b"broken")

    message = run.fails("predict", *files, "--checkpoint", checkpoint, "--out", tmp_path / "out")

    lines = message.splitlines()
    if count > 1:
        assert lines.pop(0) == f"{count} of {count} images could not be read"
        assert lines.pop() == "and 2 more"
    assert lines[0].startswith(f"image {files[0]} must be a readable image")
    assert len(lines) == min(count, 5)
    assert not (tmp_path / "out").exists()


def test_an_image_keeps_its_number_if_another_one_cannot_be_read(
    checkpoint: Path, photos: Path
) -> None:
    (photos / "a.png").write_bytes(b"broken")

    result = deformable_detr.predict(photos, checkpoint=checkpoint, device="cpu")

    assert result.image_ids == {photos / "b.jpg": 2, photos / "c.tif": 3}


def test_the_limit_of_detections_is_in_the_header_and_a_warning_counts_the_images(
    run: CommandLine,
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--threshold", "0")

    with caplog.at_level(logging.INFO):
        outcome = run("predict", photos, *options, "--max-detections", "4", "--classes", "dog,cat")

    assert outcome.out.startswith("12 objects in 3 images")
    assert "3 images, score threshold 0, classes dog, cat, limit 4" in caplog.text
    assert "max_detections 4 has left out detections" in caplog.text
    assert "in 3 images" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run("predict", photos, *options)
    assert "3 images, score threshold 0, all classes, no limit of detections" in caplog.text
    assert "left out" not in caplog.text


def test_images_of_the_same_name_get_distinct_pictures(tmp_path: Path) -> None:
    files = ["x/a.jpg", "y/a.jpg", "y/A.JPEG", "y/a.bmp", "y/a.b.tif", "\u00e9.tif", "e\u0301.tif"]

    names = picture_names([tmp_path / file for file in files]).values()

    assert list(names) == [
        *("a.jpg", "a_2.jpg", "A_3.jpg", "a.png", "a.b.png", "\u00e9.png", "e\u0301_2.png"),
    ]


def test_an_image_given_twice_is_processed_once(photos: Path) -> None:
    files = find_photos([photos / "b.jpg", photos])

    assert [file.name for file in files] == ["b.jpg", "a.png", "c.tif"]


def test_a_missing_image_is_named(run: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "none.jpg"

    message = run.fails("predict", path, "--checkpoint", "c", "--out", tmp_path / "out")

    assert message == f"image or folder {path} must exist, found nothing there"


def test_a_folder_without_images_is_named(run: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a photo")

    message = run.fails("predict", tmp_path, "--checkpoint", "c", "--out", tmp_path / "out")

    assert message.startswith(f"folder {tmp_path} must hold images (.")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--classes", "dog,cow"), "classes must be names of the detector's classes, got cow;"),
        (("--device", "gpu"), "device must be auto, cpu, cuda, cuda:<index> or mps, got 'gpu'"),
        (("--checkpoint", "none.pth"), "checkpoint none.pth does not exist; check the path"),
    ],
)
def test_a_wrong_option_is_named(
    run: CommandLine,
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    options: tuple[str, str],
    expected: str,
) -> None:
    message = run.fails(
        "predict", photos, "--checkpoint", checkpoint, "--out", tmp_path / "out", *options
    )

    assert message.startswith(expected)


def test_a_file_that_is_no_checkpoint_is_named(
    run: CommandLine, photos: Path, tmp_path: Path
) -> None:
    text, foreign = tmp_path / "text.pth", tmp_path / "foreign.pth"
    text.write_text("hello")
    torch.save({"model": {}}, foreign)

    def message(path: Path) -> str:
        return run.fails("predict", photos, "--checkpoint", path, "--out", tmp_path / "out")

    assert message(text).startswith(f"checkpoint {text} is not a file that PyTorch wrote")
    assert message(foreign).startswith(
        f"checkpoint {foreign} must hold a detector's weights by name"
    )


def test_the_commands_and_the_python_api_have_the_same_defaults() -> None:
    default = inspect.signature(predict).parameters["threshold"].default
    assert default == DEFAULT_THRESHOLD
    assert inspect.signature(evaluate).parameters["max_detections"].default == MAX_DETECTIONS
