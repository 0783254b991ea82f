"""Validation: what a run is evaluated on while it trains, and when."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deformable_detr.data.collate import Batch
from deformable_detr.engine.evaluate import evaluate, validation_loss
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.stopping import StopRequest
from deformable_detr.engine.watchdog import Watchdog
from deformable_detr.evaluation.coco_eval import CocoEvaluator
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.losses.criterion import SetCriterion


@dataclass(frozen=True)
class Validation:
    """What a run is evaluated on, and when.

    Attributes:
        loader: this process's part of the validation images.
        annotations: their COCO annotation file.
        every_epochs: epochs from one evaluation to the next; there always is one at the end.
        max_detections: how many detections an image may have.
        with_loss: whether to compute the loss too, in a pass of its own.
    """

    loader: Iterable[Batch]
    annotations: Path
    every_epochs: int = 1
    max_detections: int = MAX_DETECTIONS
    with_loss: bool = False

    def watched_by(self, watchdog: Watchdog) -> "Validation":
        """The same, where each batch is a sign of progress."""
        return replace(self, loader=watchdog.over(self.loader, "a validation batch"))

    def is_due(self, state: TrainState, steps_per_epoch: int, end: int) -> bool:
        """Whether the weights are to be evaluated before the next step, and have not been."""
        epoch, steps_within = divmod(state.step, steps_per_epoch)
        is_time = state.step == end or (steps_within == 0 and epoch % self.every_epochs == 0)
        return 0 < state.step != state.evaluated and is_time

    def measure(
        self, state: TrainState, criterion: SetCriterion, stop: StopRequest
    ) -> tuple[dict[str, Any], DetectionTable]:
        """Evaluate the weights, averaged ones where the run has them.

        Returns:
            The record of the evaluation, and all that was detected.

        Raises:
            PreemptedError: the run was asked to stop before the last batch was done.
        """
        model = state.model if state.ema is None else state.ema.model
        evaluator = CocoEvaluator(self.annotations, state.label_space)
        metrics = evaluate(
            model,
            stop.check_between(self.loader),
            evaluator,
            device=state.device,
            max_detections=self.max_detections,
        )
        record: dict[str, Any] = {"step": state.step, "epoch": state.epoch, **metrics.as_dict()}
        if self.with_loss:
            loader = stop.check_between(self.loader)
            losses = validation_loss(model, loader, criterion, device=state.device)
            record |= {f"validation/{name}": value for name, value in losses.items()}
        return record, evaluator.table
