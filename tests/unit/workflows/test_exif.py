"""Every path reads the same pixels of an image with an EXIF orientation as its annotations mean."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.coco_files import CocoFiles
from helpers.small_run import SMALL_RUN, data_settings
from helpers.turned_images import (
    SIZE,
    box_of,
    stored_pixels,
    upright_pixels,
    write_turned,
    write_turned_set,
)
from PIL import Image
from torch import nn

from deformable_detr.builders import build_dataset
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.transforms import Resize, normalize
from deformable_detr.detector import Detector
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import as_photo, read_photo
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions
from deformable_detr.workflows import evaluation, evaluation_places, explanation, run_report
from deformable_detr.workflows.overfitting import overfit_config
from deformable_detr.workflows.prediction import predict
from deformable_detr.workflows.training import train, warn_of_other_pixels

FRAMES = ("upright", "stored")
WITNESS = 6  # an orientation that the annotated size reveals
SPACE = LabelSpace((3,), ("red thing",))


class RedFinder(nn.Module):
    """Detector that finds the pixels of the object."""

    def forward(self, images: ImageBatch) -> ModelOutput:
        red = normalize(Image.new("RGB", (1, 1), (125, 0, 0)))[0, 0, 0]
        boxes = []
        for pixels, mask in zip(images.images, images.padding_mask, strict=True):
            rows, columns = torch.nonzero(pixels[0] > red, as_tuple=True)
            left, top = columns.min(), rows.min()
            width, height = columns.max() + 1 - left, rows.max() + 1 - top
            box = torch.stack([left + width / 2, top + height / 2, width, height])
            H, W = int((~mask[:, 0]).sum()), int((~mask[0]).sum())  # without padding
            boxes.append(box / torch.tensor([W, H, W, H]))
        last = Predictions(torch.full((len(boxes), 1, 1), 5.0), torch.stack(boxes)[:, None])
        return ModelOutput(last=last, auxiliary=(), encoder=None)


def red_finder(exif: str = "upright") -> Detector:
    transform = Resize(min(SIZE), 1000)
    return Detector(RedFinder(), SPACE, transform=transform, device=torch.device("cpu"), exif=exif)


def expected(orientation: int, frame: str) -> np.ndarray:
    return upright_pixels() if frame == "upright" else stored_pixels(orientation)


def require_pixels(image: Image.Image, orientation: int, frame: str) -> None:
    assert np.array_equal(np.asarray(image), expected(orientation, frame))
    assert as_photo(image) is image  # nobody turns it again


def write_set(folder: Path, orientation: int, frame: str) -> CocoFiles:
    images = {"a.png": (orientation, frame), "witness.png": (WITNESS, frame)}
    return write_turned_set(folder, images)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_samples_evaluation_and_pictures_follow_the_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, frame: str
) -> None:
    files = write_set(tmp_path, orientation, frame)
    config = load_config(RunConfig(), data_settings(files, files))
    drawn: list[Image.Image] = []

    def record(image: Image.Image, *_: object) -> Image.Image:
        drawn.append(image)
        return image

    monkeypatch.setattr(evaluation_places, "draw_annotations", record)
    monkeypatch.setattr(evaluation_places, "draw_detections", record)

    sample = build_dataset(config, "train")[0]
    result = evaluation.evaluate(
        red_finder(),
        images=files.images,
        annotations=files.annotations,
        num_workers=0,
        pictures=tmp_path / "pictures",
    )

    assert sample.size == sample.original_size == expected(orientation, frame).shape[:2]
    assert sample.boxes_xyxy[0].tolist() == box_of(np.asarray(sample.image))
    assert result.metrics["AP"] == pytest.approx(1)
    other = red_finder("stored" if frame == "upright" else "upright")  # the annotations decide
    predict(
        files.images, checkpoint=other, annotations=files.annotations, out=tmp_path, threshold=0
    )
    scored = evaluation.score_results(tmp_path / "detections.json", files.annotations)
    assert scored == result
    for image in (sample.image, *drawn[:2]):
        require_pixels(image, orientation, frame)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_prediction_and_explanation_follow_the_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, frame: str
) -> None:
    detector, path = red_finder(frame), tmp_path / "a.png"
    write_turned(path, orientation)
    seen: list[Image.Image] = []
    monkeypatch.setattr(explanation, "_View", lambda _, image: seen.append(image))

    found = predict(path, checkpoint=detector, out=tmp_path / "out").detections[path]
    with Image.open(path) as opened:
        in_memory = detector.predict([path, opened, read_photo(path, exif=frame)])
        explanation.explain(opened, checkpoint=detector, queries=0)
    explanation.explain(path, checkpoint=detector, queries=0)

    box = box_of(expected(orientation, frame))
    for detections in (found, *in_memory):
        assert detections.boxes_xyxy.round().tolist() == [box]
    for image in seen:
        require_pixels(image, orientation, frame)
    with Image.open(tmp_path / "out" / "a.png") as picture:
        is_wide = picture.width > picture.height
    assert is_wide == (expected(orientation, frame).shape[1] == max(SIZE))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_report_shows_the_annotated_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, frame: str
) -> None:
    files = write_set(tmp_path, orientation, frame)
    dataset = CocoDataset(files.images, files.annotations)
    (tmp_path / "best.pth").touch()
    photos = []
    for name in ("RunFacts", "nearest_recipe"):
        monkeypatch.setattr(run_report, name, lambda *_, **__: ("", []))
    for name in ("_identity", "_environment"):
        monkeypatch.setattr(run_report, name, lambda *_: {})
    monkeypatch.setattr(run_report, "write_report", lambda *given: photos.append(given[-1](1)))

    run_report.write_run_report(RunConfig(), RunFolder(tmp_path), dataset, None, None)

    require_pixels(photos[0].image, orientation, frame)


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".png"])
@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_every_format_can_be_read_upright_and_stored(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"a{suffix}"
    write_turned(path, orientation)

    for frame in FRAMES:
        pixels = np.asarray(read_photo(path, exif=frame)).astype(int)
        assert pixels.shape == expected(orientation, frame).shape
        assert abs(pixels - expected(orientation, frame)).max() <= 3


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".png"])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_sizes_of_every_format_decide(tmp_path: Path, suffix: str, frame: str) -> None:
    names = {f"{number}{suffix}": (number, frame) for number in (1, 5, 6, 8)}
    files = write_turned_set(tmp_path, names)

    assert CocoDataset(files.images, files.annotations).exif == frame


def test_sizes_that_disagree_are_an_error(tmp_path: Path) -> None:
    frames = {"a.png": "stored", "b.png": "upright", "c.png": "stored"}
    files = write_turned_set(tmp_path, {name: (6, frame) for name, frame in frames.items()})

    message = r"got 1 upright \(such as b.png\) and 2 stored \(such as a.png\)"
    with pytest.raises(ValueError, match=message):
        CocoDataset(files.images, files.annotations)


@pytest.mark.parametrize("otherwise", FRAMES)
def test_images_that_do_not_tell_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, otherwise: str
) -> None:
    square = (40, 40)
    names = {"a.png": (1, "stored"), "b.png": (6, "stored"), "c.png": (3, "stored")}
    files = write_turned_set(tmp_path, names, size=square)

    dataset = CocoDataset(files.images, files.annotations, exif_otherwise=otherwise)

    assert (dataset.exif, dataset.num_turned) == (otherwise, 2)
    assert len(caplog.messages) == 1
    assert "2 images have an EXIF orientation, such as b.png" in caplog.messages[0]
    assert f"taken as {otherwise}" in caplog.messages[0]
    assert np.array_equal(
        np.asarray(dataset[1].image),
        upright_pixels(square) if otherwise == "upright" else stored_pixels(6, square),
    )


def test_sets_without_orientations_are_read_upright_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_turned_set(tmp_path, {"a.png": (1, "stored")})

    assert CocoDataset(files.images, files.annotations).exif == "upright"
    assert not caplog.messages


@pytest.mark.parametrize(
    ("setting", "frame"),
    [
        ("data.exif=upright", "upright"),
        ("data.exif=stored", "stored"),
        ("match_official=true", "stored"),
        ("data.exif=auto", "upright"),
    ],
)
def test_the_setting_decides_where_sizes_do_not(tmp_path: Path, setting: str, frame: str) -> None:
    files = write_turned_set(tmp_path, {"a.png": (3, "stored")})
    config = load_config(RunConfig(), [*data_settings(files, files), setting])

    assert build_dataset(config, "train").exif == frame


@pytest.mark.parametrize(
    ("setting", "frame", "got"),
    [
        ("data.exif=upright", "stored", "(40, 56) upright, as data.exif or --exif says"),
        (
            "match_official=true",
            "upright",
            "(56, 40) before its EXIF orientation is applied, "
            "as data.exif or --exif or match_official says",
        ),
    ],
)
def test_a_setting_that_contradicts_the_sizes_is_an_error(
    tmp_path: Path, setting: str, frame: str, got: str
) -> None:
    files = write_turned_set(tmp_path, {"a.png": (6, frame)})
    config = load_config(RunConfig(), [*data_settings(files, files), setting])

    with pytest.raises(ValueError, match=re.escape(f"got {got}")):
        build_dataset(config, "train")


def test_the_warning_of_undecided_sizes_names_both_ways_to_decide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_turned_set(tmp_path, {"a.png": (3, "upright")})

    build_dataset(load_config(RunConfig(), data_settings(files, files)), "train")

    assert "(data.exif, or evaluate --exif, decides: upright or stored)" in caplog.text


def test_an_overfit_run_follows_the_whole_training_set(tmp_path: Path) -> None:
    names = {"a.png": (3, "stored"), "b.png": (6, "stored")}
    files = write_turned_set(tmp_path, names)
    config = load_config(RunConfig(), data_settings(files, files))

    part, _ = overfit_config(config, 1, subset=tmp_path / "subset.json")

    assert part.data.exif == "stored"


def test_a_run_keeps_the_decision_of_its_training_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stored = write_turned_set(tmp_path / "a", {"a.png": (6, "stored"), "b.png": (1, "stored")})
    undecided = write_turned_set(tmp_path / "b", {"a.png": (3, "stored")})
    settings = [*SMALL_RUN, *data_settings(stored, undecided)]
    settings += ["train.total_batch=2", "train.epochs=1"]

    result = train("deformable_detr_r50", overrides=settings, run_dir=tmp_path / "run")

    assert any("training images stored, validation images stored" in m for m in caplog.messages)
    detector = result.detector()
    assert detector.exif == "stored"
    assert (
        evaluation.open_detector(RunConfig(), result.checkpoint, detector.device).exif == "stored"
    )
    caplog.clear()
    evaluation.evaluate(
        detector, images=undecided.images, annotations=undecided.annotations, num_workers=0
    )
    assert any("taken as stored" in message for message in caplog.messages)


@pytest.mark.parametrize("recorded", [None, "stored", "upright"])
def test_resuming_warns_if_images_are_read_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recorded: str | None
) -> None:
    files = write_turned_set(tmp_path, {"a.png": (3, "upright")})
    dataset = CocoDataset(files.images, files.annotations)
    data = {} if recorded is None else {"exif": recorded}
    caplog.clear()

    warn_of_other_pixels(SimpleNamespace(config={"data": data}), dataset)

    warning = "1 training images have an EXIF orientation, and are now read upright; "
    expected = [] if recorded == "upright" else [f"{warning}data.exif=stored reads them as before"]
    assert caplog.messages == expected
