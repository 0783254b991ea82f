"""`predict --annotations`: results of a data set, which score what `evaluate` measures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_files import CocoFiles
from helpers.command_line import CommandLine
from helpers.tiny_checkpoint import LABEL_SPACE
from PIL import Image

from deformable_detr.detector import Detector

SIZES = [(64, 48), (48, 64), (80, 50), (64, 48), (60, 60), (48, 96)]  # width, height
IDS = [70, 3, 51, 12, 40, 9]  # neither sorted nor 1, 2, ...


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> CocoFiles:
    """Images of several sizes; annotated are boxes near some that the detector finds."""
    folder = tmp_path_factory.mktemp("set")
    files = CocoFiles(folder / "images", folder / "annotations.json")
    files.images.mkdir()
    random = np.random.default_rng(0)
    detector = Detector.from_checkpoint(checkpoint, device="cpu")
    images, annotations = [], []
    for number, (image_id, (width, height)) in enumerate(zip(IDS, SIZES, strict=True)):
        name = f"{number}.png"
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(files.images / name)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        found = detector.predict(files.images / name, threshold=0)
        for row in (0, 4, 7):
            x0, y0, x1, y1 = found.boxes_xyxy[row].tolist()
            shift = random.uniform(-0.15, 0.15) * (x1 - x0)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": LABEL_SPACE.category_ids[found.labels[row]],
                "bbox": [x0, y0, x1 - x0 + shift, y1 - y0],
                "iscrowd": 0,
            }
            annotations.append(annotation)
    categories = LABEL_SPACE.to_json()
    files.write({"images": images, "annotations": annotations, "categories": categories})
    return files


@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("limit", ["100", "4"])
def test_predictions_score_the_digits_of_an_evaluation(
    run: CommandLine,
    checkpoint: Path,
    photos: CocoFiles,
    tmp_path: Path,
    batch_size: str,
    limit: str,
) -> None:
    detector = ["--checkpoint", checkpoint, "--device", "cpu", "--batch-size", batch_size]
    annotations = ["--annotations", photos.annotations, "--max-detections", limit]

    evaluated = run(
        *("evaluate", *detector, *annotations, "--images", photos.images, "--num-workers", "0")
    )
    predicted = run(
        *("predict", photos.images, *detector, *annotations, "--threshold", "0"),
        *("--out", tmp_path),
    )
    scored = run("evaluate", "--results", tmp_path / "detections.json", *annotations)

    assert predicted.code == 0, predicted.err
    ap = evaluated.out.split("\u2502")[2].strip()  # the first value of the table
    assert 0.1 < float(ap) < 0.9
    assert scored.out == evaluated.out


def test_results_have_ids_and_names_of_the_annotation_file(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, tmp_path: Path
) -> None:
    content = photos.read()
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"  # with the folder of the images
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))
    chosen = [photos.images / "4.png", photos.images / "0.png"]
    options = ["--checkpoint", checkpoint, "--device", "cpu", "--threshold", "0"]

    run("predict", *chosen, *options, "--annotations", annotations, "--out", tmp_path / "named")
    run("predict", *chosen, *options, "--out", tmp_path / "numbered")

    def images(folder: str) -> list[tuple[int, str]]:
        results = json.loads((tmp_path / folder / "detections.json").read_text())
        return list(dict.fromkeys((one["image_id"], one["file_name"]) for one in results))

    assert images("named") == [(40, "images/4.png"), (70, "images/0.png")]
    assert images("numbered") == [(1, chosen[0].as_posix()), (2, chosen[1].as_posix())]


def test_an_image_that_is_not_annotated_is_refused_before_any_work(
    run: CommandLine, photos: CocoFiles, tmp_path: Path
) -> None:
    folder, out = tmp_path / "more", tmp_path / "out"
    shutil.copytree(photos.images, folder)
    shutil.copy(photos.images / "0.png", folder / "new.png")

    message = run.fails(
        *("predict", folder, "--annotations", photos.annotations, "--out", out),
        *("--checkpoint", "not even there"),
    )

    assert message == (
        f"image {folder / 'new.png'} must be one image of annotation file {photos.annotations}, "
        "found no such file_name; leave it out, or predict without annotations"
    )
    assert not out.exists()


def test_annotations_with_other_categories_are_refused(
    run: CommandLine, checkpoint: Path, photos: CocoFiles, tmp_path: Path
) -> None:
    content = photos.read()
    content["categories"][0]["name"] = "lion"
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))

    message = run.fails(
        *("predict", photos.images, "--annotations", annotations, "--out", tmp_path / "out"),
        *("--checkpoint", checkpoint, "--device", "cpu"),
    )

    assert message.startswith(
        f"annotation file {annotations} must have the categories of the detector"
    )
    assert "lion" in message
