import json
import re
from pathlib import Path

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.shared_data import shared_data
from helpers.tiny_checkpoint import LABEL_SPACE, write_random_checkpoint
from PIL import Image

from deformable_detr import Detector

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
    assert sorted(file.name for file in pictures.iterdir()) == ["1.png", "2.png"]
    with Image.open(pictures / "1.png") as picture:  # two images of 64 x 48 side by side
        assert picture.width > 2.3 * picture.height


def test_evaluation_and_prediction_score_the_same_at_any_batch_size(
    run: CommandLine, tmp_path: Path
) -> None:
    sizes = [(48, 64), (64, 48), (40, 64), (48, 64), (30, 70), (64, 48), (48, 64)]
    files = write_coco_set(tmp_path / "set", num_images=7, sizes=sizes, categories=CATEGORIES)
    checkpoint = tmp_path / "last.pth"
    detector = Detector.from_checkpoint(write_random_checkpoint(checkpoint), device="cpu")
    _annotate_detections(files, detector)
    device, score = ("--device", "cpu"), ("evaluate", "--annotations", files.annotations)
    printed, scores = [], []
    for size in ("1", "4"):
        own, out = ("--checkpoint", checkpoint, *device, "--batch-size", size), tmp_path / size
        results = out / "results.json"
        images = ("--images", files.images, "--num-workers", "0", "--out", results)
        printed.append(run(*score, *own, *images).out)
        run("predict", files.images, *own, "--threshold", "0", "--out", out)
        printed.append(run(*score, "--results", out / "detections.json").out)
        scores += [json.loads(path.read_text()) for path in (results, out / "detections.json")]
    assert re.search(r"AP +. +0\.[1-8]", printed[0])
    assert printed == printed[:1] * 4
    for other in scores[1:]:
        for one, expected in zip(other, scores[0], strict=True):
            assert one["score"] == pytest.approx(expected["score"], abs=2e-6)
            assert one["bbox"] == pytest.approx(expected["bbox"], abs=2e-3)


def _annotate_detections(files: CocoFiles, detector: Detector) -> None:
    """Replace the annotations by the best detections of each image, moved by a few pixels."""
    content = files.read()
    annotations = []
    for image in content["images"]:
        found = detector.predict(files.images / image["file_name"], threshold=0)
        edges = torch.tensor([image["width"], image["height"]] * 2)
        boxes = found.boxes_xyxy.maximum(torch.zeros(4)).minimum(edges)
        for rank in range(4):
            x0, y0, x1, y1 = boxes[rank].tolist()
            box = [x0, y0, (x1 - x0) * (1 - 0.08 * rank), (y1 - y0) * (1 - 0.08 * rank)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": detector.label_space.category_ids[found.labels[rank]],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    files.write({**content, "annotations": annotations})


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


def test_a_checkpoint_needs_images(run: CommandLine) -> None:
    message = run.fails("evaluate", "--annotations", "a", "--checkpoint", "c")

    assert message == "--checkpoint and --images must both be given, or else --results"


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
