from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_checkpoint import LABEL_SPACE, write_checkpoint, write_random_checkpoint
from PIL import Image
from torch import nn

import deformable_detr.detector
from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions

LOGITS = [[4.0, 1.0, -9.0], [-9.0, 3.0, 2.0]]  # two queries, three classes
BOXES = [[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]]  # cxcywh


class FixedModel(nn.Module):
    """Model with the same predictions for all images, which records its batch shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_shapes: list[tuple[int, ...]] = []

    def forward(self, images: ImageBatch) -> ModelOutput:
        self.batch_shapes.append(tuple(images.images.shape))
        assert not images.padding_mask.any()
        N = len(images)
        predictions = Predictions(
            torch.tensor(LOGITS).expand(N, 2, 3), torch.tensor(BOXES).expand(N, 2, 4)
        )
        return ModelOutput(last=predictions, auxiliary=(), encoder=None)


def _detector(model: nn.Module | None = None) -> Detector:
    return Detector(
        model or FixedModel(),
        LABEL_SPACE,
        transform=Resize(32, 64),
        device=torch.device("cpu"),
    )


def _photo(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def test_boxes_are_in_pixels_of_the_input_image() -> None:
    found = _detector().predict(_photo(200, 100), threshold=0.9)

    assert found.labels.tolist() == [0, 1]
    assert found.boxes_xyxy.tolist() == [[0, 0, 200, 100], [0, 0, 100, 50]]
    torch.testing.assert_close(found.scores, torch.tensor([4.0, 3.0]).sigmoid())


def test_one_image_gives_detections_and_a_list_gives_a_list() -> None:
    detector = _detector()

    assert len(detector.predict(_photo(64, 32))) == 4
    assert [len(found) for found in detector.predict([_photo(64, 32)])] == [4]
    assert detector.predict([]) == []


def test_images_of_the_same_processed_size_form_batches_and_keep_their_order() -> None:
    model = FixedModel()
    sizes = [(64, 32), (32, 64), (128, 64), (32, 64), (64, 32)]

    found = _detector(model).predict([_photo(*size) for size in sizes], batch_size=2)

    assert sorted(model.batch_shapes) == [(1, 3, 32, 64), (2, 3, 32, 64), (2, 3, 64, 32)]
    corners = [tuple(detections.boxes_xyxy[0, 2:].tolist()) for detections in found]
    assert corners == sizes


def test_freed_memory_is_returned_while_images_change_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(
        "deformable_detr.engine.memory.return_freed_memory", lambda: calls.append(None)
    )
    _detector().predict([_photo(32 + side, 32) for side in range(11)])
    assert len(calls) == 2


def test_all_kinds_of_images_may_be_mixed(tmp_path: Path) -> None:
    _photo(64, 32).save(tmp_path / "photo.png")
    images = [
        tmp_path / "photo.png",
        np.zeros((32, 64, 3), np.uint8),
        torch.zeros(3, 32, 64),
        torch.zeros(3, 32, 64, dtype=torch.uint8),
    ]

    assert [len(found) for found in _detector().predict(images)] == [4] * 4


def test_only_the_given_classes_are_detected() -> None:
    found = _detector().predict(_photo(64, 32), classes=["dog", "tree"], threshold=0.5)

    assert [LABEL_SPACE.names[label] for label in found.labels] == ["dog", "tree", "dog"]


def test_objects_of_other_classes_do_not_crowd_out_the_given_ones() -> None:
    class Crowded(FixedModel):
        def forward(self, images: ImageBatch) -> ModelOutput:
            logits = torch.full((1, 150, 3), -9.0)
            logits[..., 0] = 5.0
            logits[0, 7, 2] = 1.0
            boxes = torch.full((1, 150, 4), 0.5)
            return ModelOutput(Predictions(logits, boxes), (), None)

    assert len(_detector(Crowded()).predict(_photo(64, 32), classes=["tree"])) == 1


class ManyObjects(nn.Module):
    """Model of 150 queries that finds a cat with all of them, and a tree with some."""

    def forward(self, images: ImageBatch) -> ModelOutput:
        N = len(images)
        logits = torch.full((N, 150, 3), -9.0)
        logits[..., 0] = 5.0
        logits[:, :30, 2] = 2.0
        boxes = torch.tensor([0.5, 0.5, 1.5, 0.5]).expand(N, 150, 4)
        return ModelOutput(Predictions(logits, boxes), (), None)


@pytest.mark.parametrize(
    ("classes", "limit", "found", "warns"),
    [
        (None, None, 180, False),
        (None, 180, 180, False),
        (None, 100, 100, True),
        (["tree"], 100, 30, False),
        (["tree"], 29, 29, True),
    ],
)
def test_all_objects_above_the_threshold_are_found_and_a_limit_that_cuts_warns(
    caplog: pytest.LogCaptureFixture,
    classes: list[str] | None,
    limit: int | None,
    found: int,
    warns: bool,
) -> None:
    images = [_photo(64, 32), _photo(32, 64), _photo(64, 32)]

    all_found = _detector(ManyObjects()).predict(images, classes=classes, max_detections=limit)

    assert [len(one) for one in all_found] == [found] * 3
    warning = f"max_detections {limit} has left out detections with a score of at least 0.3 in 3"
    assert [line.startswith(warning) for line in caplog.messages] == [True] * warns


def test_boxes_are_clipped_to_the_image_as_the_setting_says(tmp_path: Path) -> None:
    detector = _detector(ManyObjects())
    assert detector.predict(_photo(200, 100), max_detections=1).boxes_xyxy[0, 0] == 0
    detector.clip_boxes = False
    assert detector.predict(_photo(200, 100), max_detections=1).boxes_xyxy[0, 0] == -50

    path = write_random_checkpoint(tmp_path / "last.pth")
    new = Detector.from_checkpoint(path, device="cpu")
    checkpoint = load_checkpoint(path)
    del checkpoint.config["data"]["clip_boxes"]  # as written by an earlier version
    save_checkpoint(path, checkpoint)
    old = Detector.from_checkpoint(path, device="cpu")
    assert (new.clip_boxes, new.clip_in_evaluation) == (True, True)
    assert (old.clip_boxes, old.clip_in_evaluation) == (False, False)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=f"threshold must be between 0 and 1, got {threshold:g}"):
        _detector().predict(_photo(64, 32), threshold=threshold)


@pytest.mark.parametrize(("classes", "named"), [(["cow", "dog", "owl"], "cow, owl"), ([], "none")])
def test_unknown_classes_are_refused_and_the_known_ones_listed(
    classes: Sequence[str], named: str
) -> None:
    with pytest.raises(ValueError, match=f"got {named}; it knows .*7: dog, 90: tree"):
        _detector().predict(_photo(64, 32), classes=classes)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        _detector().predict(_photo(64, 32), batch_size=0)


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_detections must be at least 1, got 0"):
        _detector().predict(_photo(64, 32), max_detections=0)


def test_a_checkpoint_determines_model_classes_and_preprocessing(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "last.pth")

    detector = Detector.from_checkpoint(tmp_path / "last.pth", device="cpu")

    assert detector.label_space == LABEL_SPACE
    assert not detector.model.training
    for name, value in detector.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])
    found = detector.predict([_photo(100, 60), _photo(60, 100)], threshold=0.0)
    assert [len(detections) for detections in found] == [15, 15]  # 5 queries, 3 classes


def test_a_checkpoint_with_missing_parameters_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pth", drop_parameter=True)

    with pytest.raises(ValueError, match=r"checkpoint .*last.pth is missing 1 parameters"):
        Detector.from_checkpoint(tmp_path / "last.pth", device="cpu")


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device must be auto, cpu, cuda.* got 'gpu'"):
        Detector.from_checkpoint(tmp_path / "last.pth", device="gpu")


@pytest.mark.parametrize("kind", ["generator", "list"])
def test_waiting_images_are_bounded_whatever_their_order(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each size comes once, then all again: without a bound all would wait for the second."""
    limit = 400_000
    monkeypatch.setattr(deformable_detr.detector, "WAITING_BYTES", limit)
    widths = [*range(32, 64), *range(32, 64)]
    images = [_photo(width, 32) for width in widths]
    given, most = [], 0

    def one_by_one() -> Iterator[Image.Image]:
        for image in images:
            given.append(image)
            yield image

    model = FixedModel()
    source = one_by_one() if kind == "generator" else images
    positions: list[int] = []
    for position, found in _detector(model).predict_each(source, threshold=0.0, batch_size=2):
        positions.append(position)
        assert found.boxes_xyxy[0, 2] == widths[position]
        most = max(most, len(given) - len(positions))

    assert sorted(positions) == list(range(len(images)))
    assert all(shape[0] <= 2 for shape in model.batch_shapes)
    per_image = 3 * 4 * 32 * 32 + (4 * 32 * 32 if kind == "generator" else 0)  # at least
    assert most <= (limit + 2 * 3 * 4 * 32 * 64) // per_image + 1
    assert len(model.batch_shapes) > 40  # those that waited longest did not find their second


def test_a_batch_is_never_smaller_for_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_detr.detector, "WAITING_BYTES", 0)
    model = FixedModel()
    _detector(model).predict([_photo(64, 32)] * 9, batch_size=4)
    assert [shape[0] for shape in model.batch_shapes] == [4, 4, 1]
