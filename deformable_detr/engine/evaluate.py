"""Evaluation of a detector on a data set: COCO metrics, and the validation loss."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.failures.watchdog import Watchdog
from deformable_detr.engine.memory import FreedMemory
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.stopping import StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.postprocess import to_detections
from deformable_detr.finite import (
    NonFinitePredictionsError,
    cause_in_weights,
    describe_non_finite,
    require_finite_predictions,
)
from deformable_detr.ground_truth import GroundTruth
from deformable_detr.losses.criterion import SetCriterion
from deformable_detr.structures import Detections, ModelOutput

Describe = Callable[[int], str]  # of an image by its id, for errors
Keep = Callable[[Mapping[int, Detections]], None]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    evaluator: CocoEvaluator,
    *,
    device: torch.device,
    clip: bool = True,
    describe: Describe = "image {}".format,
    owner: str = "the model",
    keep: Keep | None = None,
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
        describe: returns the description of an image in errors, by its id.
        owner: description of the weights in errors.
        keep: called with the detections of each batch by image id.

    Returns:
        The metrics over all images.

    Raises:
        NonFinitePredictionsError: on every rank, if a prediction of one is infinite or NaN.
    """
    share = _Share(loader, model, owner)
    freed = FreedMemory(device)
    with _eval_mode(model):
        for batch in share:
            output = model(batch.images.to(device, non_blocking=True))
            image_ids = [target.image_id for target in batch.targets]
            with share.watched():
                detections = to_detections(
                    output.last,
                    [target.original_size for target in batch.targets],
                    label_space=evaluator.label_space,
                    max_detections=evaluator.max_detections,
                    clip=clip,
                    describe=lambda place, ids=image_ids: describe(ids[place]),  # type: ignore[misc]
                )
                found = dict(zip(image_ids, detections, strict=True))
                evaluator.update(found)
                if keep is not None:
                    keep(found)
            height, width = batch.images.images.shape[2:]
            freed.after_batch((height, width))
    share.raise_together()
    evaluator.synchronize()
    metrics = evaluator.compute() if distributed.is_main() else None
    result = distributed.all_gather_objects(metrics)[0]
    assert result is not None
    return result


@torch.no_grad()
def validation_loss(
    model: nn.Module,
    loader: Iterable[Batch],
    criterion: SetCriterion,
    *,
    device: torch.device,
    describe: Describe = "image {}".format,
    owner: str = "the model",
) -> dict[str, float]:
    """Compute the losses per object over a whole data set, independent of the batch size.

    Args:
        model: see `evaluate`.
        loader: see `evaluate`.
        criterion: loss function.
        device: device of the model.
        describe: see `evaluate`.
        owner: see `evaluate`.

    Returns:
        The terms of the criterion by name, the same on every rank.

    Raises:
        NonFinitePredictionsError: on every rank, if a prediction of any layer is infinite or NaN.
        ValueError: on every rank, if a loss is, although the predictions are finite.
    """
    sums: dict[str, Tensor] = {}
    num_boxes = 0
    share = _Share(loader, model, owner)
    with _eval_mode(model):
        for batch in share:
            batch = batch.to(device)
            output = model(batch.images)
            image_ids = [target.image_id for target in batch.targets]
            with share.watched():
                _require_finite_layers(output, image_ids, describe)
                result = criterion(output, batch.targets, 1.0)
                num_boxes += sum(len(target) for target in batch.targets)
                for name, value in result.losses.items():
                    sums[name] = sums[name] + value if name in sums else value
    share.raise_together()
    parts = distributed.all_gather_objects(
        (num_boxes, {name: float(value) for name, value in sums.items()})
    )
    total_boxes = max(1, sum(count for count, _ in parts))
    names = next((losses for _, losses in parts if losses), {})
    means = {
        name: sum(losses.get(name, 0.0) for _, losses in parts) / total_boxes for name in names
    }
    if bad := [f"{name} {value}" for name, value in means.items() if not math.isfinite(value)]:
        raise ValueError(
            f"the validation loss must be finite, got {', '.join(bad)}; the logits or boxes of "
            f"{owner} are too large for float32: take an earlier checkpoint"
        )
    return means


def _require_finite_layers(
    output: ModelOutput, image_ids: Sequence[int], describe: Describe
) -> None:
    """Raise if a prediction of any layer is not finite; name image and layer."""
    layers = {f"decoder layer {index}": layer for index, layer in enumerate(output.auxiliary)}
    if output.encoder is not None:
        layers["the proposals"] = output.encoder
    for name, layer in {**layers, "the last decoder layer": output.last}.items():
        require_finite_predictions(
            layer.logits,
            layer.boxes,
            lambda place, name=name: f"{describe(image_ids[place])} in {name}",  # type: ignore[misc]
        )


class _Share:
    """This rank's batches; an error in one of them is raised on every rank, after the last.

    After an error, the rest is read without being evaluated if there are other processes: they may
    exchange something between two batches, as for a stop request, and would wait for this one.

    Args:
        loader: the batches.
        model: the model that is evaluated.
        owner: description of its weights.
    """

    def __init__(self, loader: Iterable[Batch], model: nn.Module, owner: str) -> None:
        self._loader, self._model, self._owner = loader, model, owner
        self._failure: ValueError | None = None

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._failure is None:
                yield batch
            if self._failure is not None and not distributed.is_started():
                return

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the error of the block, with its cause in the weights if predictions have one."""
        try:
            yield
        except NonFinitePredictionsError as error:
            cause = cause_in_weights(self._model.state_dict(), self._owner)
            self._failure = error.because(cause)
        except ValueError as error:  # such as the matcher's, if predictions are finite but huge
            self._failure = error

    def raise_together(self) -> None:
        """Raise the first error of a rank on every rank; every process must call."""
        failures = [one for one in distributed.all_gather_objects(self._failure) if one is not None]
        if failures:
            raise failures[0]


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
        loader: this rank's share of the validation images; has a length.
        annotations: ground truth of these images.
        every_epochs: epochs between two evaluations; the last step is always evaluated.
        with_loss: whether to compute the loss too, in a second pass.
        clip: whether to clip detected boxes to the image; the official code does not.
        describe: returns the description of an image in errors, by its id.
    """

    loader: Iterable[Batch]
    annotations: GroundTruth
    every_epochs: int = 1
    with_loss: bool = False
    clip: bool = True
    describe: Describe = "image {}".format

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
            NonFinitePredictionsError: on every rank, if a prediction is infinite or NaN.
        """
        model, owner = state.model, "the model"
        if state.ema is not None:
            model, owner = state.ema.model, "the moving average of the weights"
        evaluator = CocoEvaluator(self.annotations, state.label_space)
        try:
            metrics = evaluate(
                model,
                stop.check_between(Tracked(self.loader, "evaluating")),
                evaluator,
                device=state.device,
                clip=self.clip,
                describe=self.describe,
                owner=owner,
            )
        except NonFinitePredictionsError as error:
            if state.ema is None or describe_non_finite(state.model.state_dict()):
                raise
            advice = "or go on with the trained weights, which are finite: train.ema_decay=0"
            raise error.because(f"{error.cause}, {advice}") from None
        record: dict[str, Any] = {"step": state.step, "epoch": state.epoch, **metrics.as_dict()}
        if self.with_loss:
            loader = stop.check_between(Tracked(self.loader, "validation loss"))
            losses = validation_loss(
                model,
                loader,
                criterion,
                device=state.device,
                describe=self.describe,
                owner=owner,
            )
            record |= {f"validation/{name}": value for name, value in losses.items()}
        return record, evaluator.table
