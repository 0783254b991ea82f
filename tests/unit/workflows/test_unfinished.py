"""Predictions and evaluations that end early, and continue to the result of undisturbed ones."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.tiny_checkpoint import CONFIG, LABEL_SPACE, write_random_checkpoint

import deformable_detr
from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.workflows import prediction
from deformable_detr.workflows.evaluation import evaluate_run

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))
SIZES = [(48, 64), (48, 64), (64, 48)]
KEPT = "detections.json.partial.jsonl"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CocoFiles:
    folder = tmp_path_factory.mktemp("set")
    return write_coco_set(folder, num_images=7, sizes=SIZES, categories=CATEGORIES)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    file = write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "random.pth")
    return Detector.from_checkpoint(file, "cpu")


def interrupt_at(count: int) -> Any:
    def callback(kind: str, values: Mapping[str, Any]) -> None:
        if values["done"] == count:
            raise KeyboardInterrupt

    return callback


def predict(images: CocoFiles, detector: Detector, out: Path, **options: Any) -> Any:
    settings = {"threshold": 0.0, "batch_size": 2, **options}
    return deformable_detr.predict(images.images, checkpoint=detector, out=out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of the files that are not hidden, by name."""
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")
    }


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List with the number of images of each batch that is given to the detector."""
    sizes: list[int] = []
    run = Detector._run

    def counting(self: Detector, batch: Any) -> Any:
        sizes.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(Detector, "_run", counting)
    return sizes


@pytest.fixture(scope="module")
def undisturbed(
    images: CocoFiles, detector: Detector, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    predict(images, detector, out)
    return out


@pytest.mark.parametrize(("at", "kept", "left"), [(3, 4, [2, 1]), (7, 7, [])])
def test_an_interrupted_prediction_continues_to_the_same_bytes(
    images: CocoFiles,
    detector: Detector,
    undisturbed: Path,
    tmp_path: Path,
    processed: list[int],
    caplog: pytest.LogCaptureFixture,
    at: int,
    kept: int,
    left: list[int],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(images, detector, tmp_path, callback=interrupt_at(at))
    assert f"{kept} of 7 images are kept in {tmp_path / KEPT}; the same" in caplog.messages[-1]
    lines = (tmp_path / KEPT).read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 1 + kept
    assert not (tmp_path / "detections.json").exists()

    processed.clear()
    caplog.set_level("INFO", "deformable_detr")
    result = predict(images, detector, tmp_path)
    assert processed == left
    assert f"{kept} of 7 images are taken over from {tmp_path / KEPT}" in caplog.messages
    assert contents(tmp_path) == contents(undisturbed)
    assert list(result.detections) == sorted(images.images.iterdir())


def test_an_image_whose_picture_was_edited_is_processed_again(
    images: CocoFiles, detector: Detector, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(images, detector, tmp_path, callback=interrupt_at(3))
    edited = tmp_path / "0001.png"
    edited.write_bytes(b"edited")
    with pytest.raises(ValueError, match=r"must not replace .*0001\.png \(changed since"):
        predict(images, detector, tmp_path)
    assert edited.read_bytes() == b"edited"
    predict(images, detector, tmp_path, overwrite=True)
    assert contents(tmp_path) == contents(undisturbed)


def test_an_image_whose_picture_is_gone_is_processed_again(
    images: CocoFiles,
    detector: Detector,
    undisturbed: Path,
    tmp_path: Path,
    processed: list[int],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(images, detector, tmp_path, callback=interrupt_at(4))
    (tmp_path / "0001.png").unlink()
    processed.clear()
    predict(images, detector, tmp_path)
    assert processed == [2, 2, 1]
    assert contents(tmp_path) == contents(undisturbed)


def test_an_error_in_one_image_keeps_those_before_it(
    images: CocoFiles,
    detector: Detector,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw, calls = prediction.draw_detections, []

    def fail_at_third(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return draw(*arguments)

    monkeypatch.setattr(prediction, "draw_detections", fail_at_third)
    with pytest.raises(OSError, match="No space left"):
        predict(images, detector, tmp_path)
    assert len((tmp_path / KEPT).read_text().splitlines()) == 1 + 2
    predict(images, detector, tmp_path)
    assert contents(tmp_path) == contents(undisturbed)


def test_other_settings_do_not_replace_what_was_found(
    images: CocoFiles, detector: Detector, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict(images, detector, tmp_path, callback=interrupt_at(4))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="4 images of other work, which differs in threshold;"):
        predict(images, detector, tmp_path, threshold=0.5)
    assert contents(tmp_path) == before
    found = predict(images, detector, tmp_path, threshold=0.5, overwrite=True)
    assert len(found.detections) == len(list(images.images.iterdir()))
    assert not (tmp_path / KEPT).exists()


def evaluate(images: CocoFiles, detector: Detector, **options: Any) -> Any:
    return deformable_detr.evaluate(
        detector,
        images=images.images,
        annotations=images.annotations,
        num_workers=0,
        device="cpu",
        **options,
    )


def test_an_interrupted_evaluation_continues_to_the_same_numbers(
    images: CocoFiles, detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = evaluate(images, detector, out=tmp_path / "whole.json")
    out, kept = tmp_path / "r.json", tmp_path / "r.json.partial.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate(images, detector, out=out, callback=interrupt_at(2))
    assert not out.exists()
    assert f"4 of 7 images are kept in {kept}" in caplog.text
    done: list[int] = []
    result = evaluate(
        images, detector, out=out, callback=lambda _, values: done.append(values["total"])
    )
    assert done == [2, 2]
    assert result == whole
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not kept.exists()


def other(detector: Detector, **changes: Any) -> Detector:
    """Return a copy of a detector with other attributes."""
    copied = copy.copy(detector)
    vars(copied).update(changes)
    return copied


def test_each_setting_that_detections_depend_on_makes_other_work(
    images: CocoFiles, detector: Detector, tmp_path: Path
) -> None:
    smaller = other(detector, transform=Resize(24, 32))
    predictions: dict[str, tuple[Detector, dict[str, Any]]] = {
        "threshold": (detector, {"threshold": 0.1}),
        "classes": (detector, {"classes": [LABEL_SPACE.names[0]]}),
        "max_detections": (detector, {"max_detections": 1}),
        "batch_size": (detector, {"batch_size": 1}),
        "exif": (other(detector, exif="stored"), {}),
        "clip_boxes": (other(detector, clip_boxes=False), {}),
        "image_size": (smaller, {}),
        "annotations": (detector, {"annotations": images.annotations}),
    }
    with pytest.raises(KeyboardInterrupt):
        predict(images, detector, tmp_path, callback=interrupt_at(2))
    for name, (changed, options) in predictions.items():
        with pytest.raises(ValueError, match=f"other work, which differs in {name};"):
            predict(images, changed, tmp_path, **options)
    evaluations: dict[str, tuple[Detector, dict[str, Any]]] = {
        "max_detections": (detector, {"max_detections": 1}),
        "batch_size": (detector, {"batch_size": 1}),
        "exif": (detector, {"exif": "stored"}),
        "clip_boxes": (other(detector, clip_in_evaluation=False), {}),
        "image_size": (smaller, {}),
    }
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        evaluate(images, detector, out=out, callback=interrupt_at(1))
    for name, (changed, options) in evaluations.items():
        with pytest.raises(ValueError, match=f"other work, which differs in {name};"):
            evaluate(images, changed, out=out, **options)


def test_an_evaluation_without_results_keeps_nothing(
    images: CocoFiles, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(images, detector, callback=interrupt_at(2))
    assert contents(tmp_path) == {}


def test_an_interrupted_evaluation_of_a_run_continues_and_does_not_block_training(
    images: CocoFiles, tmp_path: Path
) -> None:
    file = write_random_checkpoint(tmp_path / "random.pth")
    settings = [
        f"data.val.images={images.images}",
        f"data.val.annotations={images.annotations}",
        "data.num_workers=0",
        "train.eval_batch=2",
    ]
    run = RunFolder(tmp_path / "run")

    def evaluated(folder: Path, **options: Any) -> Any:
        return evaluate_run(
            CONFIG, overrides=settings, run_dir=folder, checkpoint=file, device="cpu", **options
        )

    whole = evaluated(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluated(run.path, callback=interrupt_at(1))
    assert list(contents(run.path)) == ["results.json.partial.jsonl"]
    run.check()  # a new run may start here, as after an evaluation
    assert evaluated(run.path) == whole
    assert contents(run.path) == contents(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluated(run.path, callback=interrupt_at(1))
    run.claim(overwrite=True)
    assert list(contents(run.path)) == ["results.json"]
