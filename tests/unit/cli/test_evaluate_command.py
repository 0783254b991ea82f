import json
from pathlib import Path

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.shared_data import shared_data
from helpers.tiny_checkpoint import LABEL_SPACE
from PIL import Image

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


@pytest.fixture
def photos(tmp_path: Path) -> CocoFiles:
    return write_coco_set(
        tmp_path / "set", num_images=3, size=(48, 64), categories=CATEGORIES, empty=[2]
    )


def test_the_published_numbers_are_printed(run: CommandLine) -> None:
    folder = shared_data("coco_val2014_100")

    outcome = run(
        "evaluate",
        "--results",
        folder / "instances_val2014_fakebbox100_results.json",
        "--annotations",
        folder / "instances_val2014_100.json",
    )

    rows = {}
    for line in outcome.out.splitlines():
        cells = [cell.strip() for cell in line.split("\u2502")[1:-1]]
        if len(cells) > 1:
            rows[cells[0]] = cells[1]
    published = "AP .505 AP50 .697 AP75 .573 APs .586 APm .519 APl .501"
    published += " AR1 .387 AR10 .594 AR100 .595 ARs .640 ARm .566 ARl .564"
    words = published.split()
    for name, value in zip(words[::2], words[1::2], strict=True):
        assert rows[name] == f"0{value}"
    assert rows["person"] == "0.533"
    assert rows["horse"] == "-"


def test_a_checkpoint_is_scored_and_its_results_score_the_same(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, tmp_path: Path
) -> None:
    out, pictures = tmp_path / "new" / "results.json", tmp_path / "pictures"
    options = ["--annotations", photos.annotations]

    by_checkpoint = run(
        "evaluate",
        *("--checkpoint", checkpoint, "--images", photos.images, *options, "--device", "cpu"),
        *("--num-workers", "0", "--out", out, "--pictures", pictures, "--num-pictures", "2"),
    )
    by_results = run("evaluate", "--results", out, *options)

    assert by_checkpoint.code == 0, by_checkpoint.err
    assert "45 detections in 3 images" in by_checkpoint.out  # 5 queries, 3 classes
    assert by_results.out == by_checkpoint.out
    assert {result["category_id"] for result in json.loads(out.read_text())} == {0, 7, 90}
    assert sorted(file.name for file in pictures.glob("*.png")) == ["1.png", "2.png"]
    with Image.open(pictures / "1.png") as picture:  # two images of 64 x 48 side by side
        assert picture.width > 2.3 * picture.height


def test_a_limit_of_detections_is_part_of_the_names_of_metrics(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, tmp_path: Path
) -> None:
    everything = tmp_path / "everything.json"
    options = ["--annotations", photos.annotations, "--max-detections", "12"]
    by_checkpoint = run(
        "evaluate",
        *("--checkpoint", checkpoint, "--images", photos.images, *options, "--device", "cpu"),
        *("--num-workers", "0", "--out", everything),
    )

    assert by_checkpoint.code == 0, by_checkpoint.err
    assert "36 detections in 3 images" in by_checkpoint.out  # 15 pairs of query and class
    precision = ["AP@12", "AP50@12", "AP75@12", "APs@12", "APm@12", "APl@12"]
    recall = ["AR1", "AR10", "AR12", "ARs@12", "ARm@12", "ARl@12"]
    lines = by_checkpoint.out.splitlines()
    found = [line.split("\u2502")[1].strip() for line in lines if line.count("\u2502") == 4]
    assert found == precision + recall
    assert "AP@12 per class" in by_checkpoint.out
    assert run("evaluate", "--results", everything, *options).out == by_checkpoint.out


def test_results_and_objects_beyond_the_limit_are_counted_in_a_warning(
    run: CommandLine,
    checkpoint: Path,
    photos: CocoFiles,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = photos.read()
    kinds = [{"image_id": 2, "iscrowd": 0}] * 3 + [{"image_id": 1, "iscrowd": 1}] * 9
    annotations = [
        {**content["annotations"][0], **kind, "id": number, "bbox": [number, 1, 9, 9], "area": 81}
        for number, kind in enumerate(kinds, 1)
    ]
    photos.write({**content, "annotations": annotations})
    results = tmp_path / "results.json"
    result = {"image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}
    results.write_text(json.dumps([result] * 3))
    options = ["--annotations", photos.annotations, "--max-detections", "2"]

    run("evaluate", "--results", results, *options)
    outcome = run(
        *("evaluate", "--checkpoint", checkpoint, "--images", photos.images, *options),
        *("--device", "cpu", "--num-workers", "0"),
    )
    assert outcome.code == 0, outcome.err

    assert f"1 of 3 images have more than 2 detections of a class in {results}" in caplog.text
    assert "1 of 3 images have more than 2 annotated objects, of which at most 2" in caplog.text
    caplog.clear()
    run("evaluate", "--results", results, *options[:2])
    assert caplog.text == ""


def test_annotations_without_objects_give_a_warning(
    run: CommandLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_coco_set(tmp_path, num_images=1, empty=[1])
    results = tmp_path / "results.json"
    results.write_text("[]")

    outcome = run("evaluate", "--results", results, "--annotations", files.annotations)

    assert outcome.code == 0
    assert "no objects to find" in caplog.text


def test_markup_in_a_class_name_is_printed_literally(run: CommandLine, tmp_path: Path) -> None:
    files = write_coco_set(tmp_path, num_images=1, categories={1: "[red]cup[/]"})
    results = tmp_path / "results.json"
    results.write_text("[]")

    assert (
        "[red]cup[/]"
        in run("evaluate", "--results", results, "--annotations", files.annotations).out
    )


def test_a_missing_checkpoint_is_named(run: CommandLine, photos: CocoFiles, tmp_path: Path) -> None:
    message = run.fails(
        "evaluate",
        *("--checkpoint", tmp_path / "none.pth"),
        *("--images", photos.images, "--annotations", photos.annotations),
    )

    assert message.startswith(f"checkpoint {tmp_path / 'none.pth'} does not exist")


def test_a_missing_image_folder_is_named(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, tmp_path: Path
) -> None:
    message = run.fails(
        "evaluate",
        *("--checkpoint", checkpoint, "--device", "cpu"),
        *("--images", tmp_path / "nowhere", "--annotations", photos.annotations),
    )

    assert str(tmp_path / "nowhere") in message


def test_broken_annotations_are_named(
    run: CommandLine, checkpoint: Path, photos: CocoFiles
) -> None:
    photos.annotations.write_text("{")

    message = run.fails(
        "evaluate",
        *("--checkpoint", checkpoint, "--device", "cpu"),
        *("--images", photos.images, "--annotations", photos.annotations),
    )

    assert str(photos.annotations) in message


def test_annotations_with_other_categories_are_refused(
    run: CommandLine, checkpoint: Path, photos: CocoFiles
) -> None:
    content = photos.read()
    content["categories"][0]["name"] = "lion"
    photos.write(content)

    message = run.fails(
        "evaluate",
        *("--checkpoint", checkpoint, "--device", "cpu"),
        *("--images", photos.images, "--annotations", photos.annotations),
    )

    assert "lion" in message
    assert "cat" in message


def test_results_of_unknown_categories_are_refused(
    run: CommandLine, photos: CocoFiles, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    result = {"image_id": 1, "category_id": 4, "bbox": [0, 0, 1, 1], "score": 1}
    results.write_text(json.dumps([result]))

    message = run.fails("evaluate", "--results", results, "--annotations", photos.annotations)

    assert message == (
        f"results of {results} must use the category_id of the annotation file, got unknown 4"
    )


def test_results_of_unknown_images_are_refused(
    run: CommandLine, photos: CocoFiles, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    result = {"image_id": 77, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}
    results.write_text(json.dumps([result]))

    message = run.fails("evaluate", "--results", results, "--annotations", photos.annotations)

    assert message.endswith("must use the image_id of the annotation file, got unknown 77")


@pytest.mark.parametrize("empty_boxes", ["missed", "ignored"])
def test_boxes_without_area_count_as_the_option_says(
    run: CommandLine,
    photos: CocoFiles,
    checkpoint: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    empty_boxes: str,
) -> None:
    content = photos.read()
    one = content["annotations"][0]
    content["annotations"] = [one, {**one, "id": 99, "bbox": [5, 5, 0, 9]}]
    photos.write(content)
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**one, "score": 1}]))
    options = ["--annotations", photos.annotations, "--empty-boxes", empty_boxes]

    found = run("evaluate", "--results", results, *options)
    assert ("0.505" if empty_boxes == "missed" else "1.000") in found.out

    by_model = run(
        *("evaluate", "--checkpoint", checkpoint, "--images", photos.images, *options),
        *("--device", "cpu", "--num-workers", "0"),
    )
    line = {"missed": "AP is 0.505 at most", "ignored": "left out of training and of evaluation"}
    assert (found.code, by_model.code) == (0, 0)
    assert [line[empty_boxes] in message for message in caplog.messages] == [True, True]


def test_results_and_a_checkpoint_exclude_each_other(run: CommandLine) -> None:
    message = run.fails("evaluate", "--annotations", "a", "--results", "r", "--checkpoint", "c")

    assert message.startswith("--results must be given with --annotations only")


def test_a_checkpoint_needs_images_and_annotations_or_neither(run: CommandLine) -> None:
    message = run.fails("evaluate", "--annotations", "a", "--checkpoint", "c")
    assert message == "--images and --annotations must both be given, or neither"
    assert run.fails("evaluate") == "--checkpoint or --results must be given, got neither"
    message = run.fails("evaluate", "--results", "r")
    assert message == "--annotations must be given with --results, got --results only"


def test_a_missing_gpu_is_named(run: CommandLine) -> None:
    message = run.fails(
        "evaluate",
        "--annotations",
        "a",
        "--checkpoint",
        "c",
        "--images",
        "i",
        "--device",
        "cuda:99",
    )

    assert message.startswith("device cuda:99 is not available here")
