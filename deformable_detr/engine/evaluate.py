"""Evaluation of a detector on a data set: COCO metrics, and the validation loss."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.failures.watchdog import Watchdog
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.postprocess import to_detections
from deformable_detr.ground_truth import GroundTruth
from deformable_detr.losses.criterion import SetCriterion


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    device: torch.device,
    clip: bool = True,
) -> CocoMetrics:
    """Compute the COCO metrics of a detector.

    Each rank evaluates its share of the images; every rank gets the same result.

    Args:
        model: the detector itself, without a wrapper. It is evaluated in eval mode; its mode is
            restored afterwards.
        loader: this rank's share of the images; may be empty.
        evaluator: a new one for the annotations of these images; it has the limit of detections.
        device: device of the model.
        clip: whether to clip boxes to the image; the official code does not.

    Returns:
        The metrics over all images.
    """
    with _eval_mode(model):
        for batch in loader:
            output = model(batch.images.to(device, non_blocking=True))
            detections = to_detections(
                output.last,
                [target.original_size for target in batch.targets],
                label_space=evaluator.label_space,
                max_detections=evaluator.max_detections,
                clip=clip,
            )
            image_ids = [target.image_id for target in batch.targets]
            evaluator.update(dict(zip(image_ids, detections, strict=True)))
    evaluator.synchronize()
    metrics = evaluator.compute() if distributed.is_main() else None
    result = distributed.all_gather_objects(metrics)[0]
    assert result is not None
    return result


@torch.no_grad()
def validation_loss(
    model: nn.Module, loader: Iterable[Batch], criterion: SetCriterion, *, device: torch.device
) -> dict[str, float]:
    """Compute the losses per object over a whole data set, independent of the batch size.

    Args:
        model: see `evaluate`.
        loader: see `evaluate`.
        criterion: loss function.
        device: device of the model.

    Returns:
        The terms of the criterion by name, the same on every rank.
    """
    sums: dict[str, Tensor] = {}
    num_boxes = 0
    with _eval_mode(model):
        for batch in loader:
            batch = batch.to(device)
            result = criterion(model(batch.images), batch.targets, 1.0)
            num_boxes += sum(len(target) for target in batch.targets)
            for name, value in result.losses.items():
                sums[name] = sums[name] + value if name in sums else value
    parts = distributed.all_gather_objects(
        (num_boxes, {name: float(value) for name, value in sums.items()})
    )
    total_boxes = max(1, sum(count for count, _ in parts))
    names = next((losses for _, losses in parts if losses), {})
    return {name: sum(losses.get(name, 0.0) for _, losses in parts) / total_boxes for name in names}


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Validation:
    """Validation set of a run, and the schedule of its evaluations.

    Attributes:
        loader: this rank's share of the validation images.
        annotations: ground truth of these images.
        every_epochs: epochs between two evaluations; the last step is always evaluated.
        with_loss: whether to compute the loss too, in a second pass.
        clip: whether to clip detected boxes to the image; the official code does not.
    """

    loader: Iterable[Batch]
    annotations: GroundTruth
    every_epochs: int = 1
    with_loss: bool = False
    clip: bool = True

    def watched_by(self, watchdog: Watchdog) -> "Validation":
        """Return a copy that reports each batch to `watchdog` as progress."""
        return replace(self, loader=watchdog.over(self.loader, "a validation batch"))

    def is_due(self, state: TrainState, steps_per_epoch: int, end: int) -> bool:
        """Return whether an evaluation is due before the next step and has not been done yet."""
        epoch, steps_within = divmod(state.step, steps_per_epoch)
        is_time = state.step == end or (steps_within == 0 and epoch % self.every_epochs == 0)
        return 0 < state.step != state.evaluated and is_time

    def measure(
        self, state: TrainState, criterion: SetCriterion, stop: StopRequest
    ) -> tuple[dict[str, Any], DetectionTable]:
        """Evaluate the weights, or their moving average if the run has one.

        Returns:
            The record of the evaluation, and all detections.

        Raises:
            PreemptedError: the run was asked to stop before the last batch was evaluated.
        """
        model = state.model if state.ema is None else state.ema.model
        evaluator = CocoEvaluator(self.annotations, state.label_space)
        metrics = evaluate(
            model,
            stop.check_between(self.loader),
            evaluator,
            device=state.device,
            clip=self.clip,
        )
        record: dict[str, Any] = {"step": state.step, "epoch": state.epoch, **metrics.as_dict()}
        if self.with_loss:
            loader = stop.check_between(self.loader)
            losses = validation_loss(model, loader, criterion, device=state.device)
            record |= {f"validation/{name}": value for name, value in losses.items()}
        return record, evaluator.table
