from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.tiny_training import LABEL_SPACE, tiny_batch, tiny_criterion, tiny_detector
from torch import nn

from deformable_detr.engine.evaluate import evaluate, validation_loss
from deformable_detr.evaluation.coco_eval import CocoEvaluator
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions

CPU = torch.device("cpu")
CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


class Oracle(nn.Module):
    """Model that predicts the objects that it was given, with certainty."""

    def __init__(self, predictions: list[Predictions]) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)  # would corrupt the boxes in training mode
        self._predictions = iter(predictions)

    def forward(self, images: ImageBatch) -> ModelOutput:
        last = next(self._predictions)
        return ModelOutput(Predictions(last.logits, self.dropout(last.boxes)), (), None)


def test_perfect_predictions_score_one(tmp_path: Path) -> None:
    files = write_coco_set(tmp_path, num_images=2, categories=CATEGORIES)
    content = files.read()
    batches, predictions = [], []
    for image in content["images"]:
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        scale = torch.tensor([image["width"], image["height"]] * 2)
        x, y, width, height = torch.tensor([one["bbox"] for one in own]).unbind(1)
        boxes = torch.stack((x + width / 2, y + height / 2, width, height), dim=1) / scale
        logits = torch.full((len(own), 3), -10.0)
        for row, one in enumerate(own):
            logits[row, LABEL_SPACE.label(one["category_id"])] = 10.0
        predictions.append(Predictions(logits[None], boxes[None]))
        batch = tiny_batch([image["id"]], [0])
        target = replace(batch.targets[0], original_size=(image["height"], image["width"]))
        batches.append(replace(batch, targets=(target,)))
    model = Oracle(predictions)
    evaluator = CocoEvaluator(read_ground_truth(files.annotations), LABEL_SPACE)
    metrics = evaluate(model, batches, evaluator, device=CPU)
    assert metrics.as_dict()["AP"] == pytest.approx(1.0)
    assert model.training
    evaluate(model.eval(), [], evaluator, device=CPU)
    assert not model.training


@pytest.mark.parametrize("count", [1, 4])
def test_the_number_of_detections_per_image_is_limited(tmp_path: Path, count: int) -> None:
    files = write_coco_set(tmp_path, num_images=2, categories=CATEGORIES)
    annotations = read_ground_truth(files.annotations)
    evaluator = CocoEvaluator(annotations, LABEL_SPACE, max_detections=count)
    evaluate(tiny_detector(), [tiny_batch([1, 2], [1, 1])], evaluator, device=CPU)
    assert len(evaluator.results()) == 2 * count


@pytest.mark.parametrize(("clip", "left"), [(True, 0), (False, -2)])
def test_boxes_are_clipped_to_the_image_unless_told_otherwise(
    tmp_path: Path, clip: bool, left: float
) -> None:
    files = write_coco_set(tmp_path, num_images=1, categories=CATEGORIES)
    batch = tiny_batch([1], [1])  # of 8 x 8 pixels
    beyond = Predictions(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.5, 0.5, 1.0]]]))
    evaluator = CocoEvaluator(read_ground_truth(files.annotations), LABEL_SPACE)
    evaluate(Oracle([beyond]), [batch], evaluator, device=CPU, clip=clip)
    assert evaluator.table.boxes_xywh.tolist() == [[left, 0, 2 - left, 8]] * 3


def test_freed_memory_is_returned_while_batches_change_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(
        "deformable_detr.engine.memory.return_freed_memory", lambda: calls.append(None)
    )
    files = write_coco_set(tmp_path, num_images=11, categories=CATEGORIES)
    batches = []
    for side in range(11):
        size = (8, 8 + side)
        images = ImageBatch(torch.zeros(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool))
        batches.append(replace(tiny_batch([1 + side], [1]), images=images))
    found = Predictions(torch.zeros(1, 1, 3), torch.full((1, 1, 4), 0.5))
    evaluator = CocoEvaluator(read_ground_truth(files.annotations), LABEL_SPACE)
    evaluate(Oracle([found] * 11), batches, evaluator, device=CPU)
    assert len(calls) == 2


def test_the_validation_loss_does_not_depend_on_the_batches() -> None:
    model = tiny_detector(dropout=0.5, dtype=torch.float64)
    ids, counts = [1, 2, 3], [3, 0, 1]
    whole = [tiny_batch(ids, counts, dtype=torch.float64)]
    single = [
        tiny_batch([image_id], [count], dtype=torch.float64)
        for image_id, count in zip(ids, counts, strict=True)
    ]
    expected = validation_loss(model, whole, tiny_criterion(), device=CPU)
    found = validation_loss(model, single, tiny_criterion(), device=CPU)
    assert found == pytest.approx(expected, rel=1e-12)
    model.eval()
    direct = tiny_criterion()(model(whole[0].images), whole[0].targets, 4.0)
    assert expected["total"] == pytest.approx(direct.losses["total"].item(), rel=1e-12)
