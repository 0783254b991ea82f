"""The training loop: `fit` calls `train_one_epoch` calls `train_step`."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import StepSampler
from deformable_detr.engine.checkpoints.writer import CheckpointWriter
from deformable_detr.engine.evaluate import Validation
from deformable_detr.engine.failures.recorder import FailureRecorder
from deformable_detr.engine.failures.watchdog import Watchdog
from deformable_detr.engine.failures.zero_ap import warn_of_zero_ap
from deformable_detr.engine.memory import naming_memory, record_peak_memory
from deformable_detr.engine.metrics import RunningMean, detection_metrics
from deformable_detr.engine.optimizer import scale_learning_rates
from deformable_detr.engine.precision import autocast, lower_loss_scale
from deformable_detr.engine.run.curves import draw_curves
from deformable_detr.engine.run.early_stopping import EarlyStopping
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.progress import TrainingProgress
from deformable_detr.engine.run.stopping import PreemptedError, StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import (
    NonFiniteError,
    StepTotals,
    dropout_seed,
    require_finite,
    with_mimicking,
)
from deformable_detr.losses.criterion import SetCriterion

logger = logging.getLogger(__name__)


def total_steps(steps_per_epoch: int, *, epochs: int, max_steps: int | None) -> int:
    """Return the number of steps of a run: those of `epochs`, but at most `max_steps`."""
    for name, value in (("epochs", epochs), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    end = epochs * steps_per_epoch
    return end if max_steps is None else min(end, max_steps)


@dataclass(frozen=True)
class TrainLoop:
    """The parts and settings of a training loop.

    Attributes:
        criterion: loss function.
        loader: this rank's micro-batches, in the order of `sampler`.
        sampler: order of the samples; set to the epoch and the step to start at.
        folder: claimed for this run; receives checkpoints, metrics and curves.
        validation: the validation set, and the schedule of evaluations.
        seed: seed of dropout; the loader has its own for samples and augmentation.
        epochs: passes over the training set; each ends with a checkpoint.
        max_steps: steps after which training ends even within an epoch, or None.
        max_grad_norm: 2-norm that gradients are clipped to; 0 for no clipping.
        log_every_steps: steps between two records in the metrics file.
        checkpoint_every_steps: steps between two checkpoints within an epoch.
        timeout_s: seconds without progress after which a run of several processes ends and names
            the rank that stalls.
        early_stopping: rule of an end before the last step, or None.
        stop: request for an end before the last step; by default there is none.
    """

    criterion: SetCriterion
    loader: Iterable[Batch]
    sampler: StepSampler
    folder: RunFolder
    validation: Validation
    seed: int
    epochs: int
    max_steps: int | None
    max_grad_norm: float
    log_every_steps: int
    checkpoint_every_steps: int
    timeout_s: float = distributed.TIMEOUT_S
    early_stopping: EarlyStopping | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def end(self) -> int:
        """Number of the last step."""
        steps_per_epoch = self.sampler.steps_per_epoch
        return total_steps(steps_per_epoch, epochs=self.epochs, max_steps=self.max_steps)

    def is_evaluation_due(self, state: TrainState) -> bool:
        """Return whether to evaluate before the next step."""
        return self.validation.is_due(state, self.sampler.steps_per_epoch, self.end)

    def early_end(self, state: TrainState) -> str:
        """Return why the run ends before the last step; "" if it goes on."""
        if self.early_stopping is None or state.step >= self.end:
            return ""
        return self.early_stopping.reason(state)


@dataclass(frozen=True)
class _Run(TrainLoop):
    """A loop with the objects that exist only while it runs."""

    progress: TrainingProgress = field(kw_only=True)
    recorder: FailureRecorder = field(kw_only=True)
    writer: CheckpointWriter = field(kw_only=True)


def fit(state: TrainState, loop: TrainLoop) -> None:
    """Train from `state` to the end; write checkpoints, metrics and curves to the run folder.

    A process that is killed loses the steps since the newest checkpoint: at most
    `checkpoint_every_steps`, plus those taken while that checkpoint was being written.

    Args:
        state: modified in place.
        loop: the parts and settings.

    Raises:
        PreemptedError: on every rank, if the run was asked to stop; the state is saved.
        RuntimeError: a checkpoint could not be written.
    """
    if state.step >= loop.end and not loop.is_evaluation_due(state):
        logger.info("nothing is left to train: step %d of %d", state.step, loop.end)
        return
    if reason := loop.early_end(state):
        logger.info("nothing is left to train: the run has %s", reason)
        return
    with (
        Watchdog(loop.timeout_s) as watchdog,
        CheckpointWriter() as writer,
        TrainingProgress(first_step=state.step, last_step=loop.end) as progress,
    ):
        parts = {one.name: getattr(loop, one.name) for one in fields(loop)}
        parts["loader"] = watchdog.over(loop.loader, "a training batch")
        parts["validation"] = loop.validation.watched_by(watchdog)
        recorder = FailureRecorder(loop.folder, loop.criterion, seed=loop.seed)
        run = _Run(**parts, progress=progress, recorder=recorder, writer=writer)
        run.recorder.note(state)
        try:
            run.stop.check()
            _take_epochs(state, run)
        except PreemptedError:
            state.epoch = state.step // loop.sampler.steps_per_epoch
            _save(state, run)
            raise
    if distributed.is_main():
        draw_curves(loop.folder.metrics, loop.folder.curves)


def _take_epochs(state: TrainState, loop: _Run) -> None:
    """Train until the last step, and evaluate whenever it is due."""
    steps_per_epoch = loop.sampler.steps_per_epoch
    while True:
        if loop.is_evaluation_due(state):
            loop.progress.say(_validate(state, loop))
            reason = loop.early_end(state)
            if reason:
                loop.progress.say(reason)
                loop.folder.record("early_stop", {"step": state.step, "reason": reason})
            _save(state, loop)
            if reason:
                return
        if state.step >= loop.end:
            return
        state.epoch, done = divmod(state.step, steps_per_epoch)
        loop.sampler.set_epoch(state.epoch)
        loop.sampler.start_at(done)
        train_one_epoch(state, loop)
        if state.step != min(loop.end, (state.epoch + 1) * steps_per_epoch):
            raise ValueError(
                f"loader must yield the micro-batches of {steps_per_epoch} steps per epoch "
                f"as the sampler does, got {state.step} steps after epoch {state.epoch}"
            )
        state.epoch = state.step // steps_per_epoch
        loop.progress.say(record_peak_memory(state, loop.folder))
        _save(state, loop)


def train_one_epoch(state: TrainState, loop: _Run) -> None:
    """Take a step for each group of micro-batches of the loader, until the last step."""
    state.model.train()
    means = RunningMean()
    for batches in _in_groups(loop.loader, loop.sampler.micro_batches_per_step):
        try:
            values = train_step(
                state, batches, loop.criterion, seed=loop.seed, max_grad_norm=loop.max_grad_norm
            )
        except NonFiniteError as error:
            causes = loop.recorder.write(state, batches, str(error))
            raise NonFiniteError(f"{error}; {causes}") from error
        means.update(values)
        loop.progress.advance(state.step)
        if state.step % loop.log_every_steps == 0 or state.step == loop.end:
            record = {
                "step": state.step,
                "epoch": state.epoch,
                "lr": state.optimizer.param_groups[0]["lr"],
                **means.read(),
            }
            loop.recorder.note(state)
            loop.folder.record("train", record)
            loop.progress.report(state.step, record)
        if state.step == loop.end:
            return
        loop.stop.check()
        is_within_epoch = state.step % loop.sampler.steps_per_epoch != 0  # else it is saved anyway
        if is_within_epoch and state.step % loop.checkpoint_every_steps == 0:
            _save(state, loop)
        loop.writer.check()


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    criterion: SetCriterion,
    *,
    seed: int,
    max_grad_norm: float,
) -> dict[str, Tensor]:
    """Take one optimizer step on this rank's micro-batches of a global batch.

    The gradient is that of the whole global batch, over all processes.

    Args:
        state: advanced by one step.
        batches: the micro-batches, on any device.
        criterion: loss function.
        seed: seed of dropout.
        max_grad_norm: see `TrainLoop`.

    Returns:
        The losses, the metrics, and the 2-norm of the gradient before clipping: scalars on the
        device, not yet averaged over processes.

    Raises:
        NonFiniteError: on every rank if on one; no weight has been changed.
    """
    totals = StepTotals.count(batches)
    scale_learning_rates(state.optimizer, state.schedule(state.step))
    while True:  # repeats only in float16, where gradients overflow until the loss scale settles
        state.optimizer.zero_grad()
        values = _accumulate_gradients(state, batches, criterion, totals, seed=seed)
        state.scaler.unscale_(state.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_grad_norm or math.inf)
        if grad_norm.isfinite():  # the same on every rank, as gradients are averaged
            break
        if not lower_loss_scale(state.scaler):
            raise NonFiniteError(
                f"the gradient of step {state.step} must be finite, got {grad_norm}"
            )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    distributed.average_statistics(state.model)
    if state.ema is not None:
        state.ema.update(state.model, step=state.step)
    state.step += 1
    return values | {"grad_norm": grad_norm}


def _accumulate_gradients(
    state: TrainState,
    batches: Sequence[Batch],
    criterion: SetCriterion,
    totals: StepTotals,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Accumulate the scaled gradients of all micro-batches; return their losses and metrics."""
    values: dict[str, Tensor] = {}
    num_boxes = criterion.divisor(totals.objects)
    failure: ValueError | None = None
    for index, batch in enumerate(batches):
        batch = batch.to(state.device, non_blocking=True)
        is_last = index == len(batches) - 1
        torch.manual_seed(dropout_seed(seed, state.step, index))
        with (
            naming_memory(batch, state.step),
            distributed.gradient_sync(state.replica, enabled=is_last),
        ):
            with autocast(state.precision, state.device):
                output = state.replica(batch.images, batch.targets)
            try:
                result = criterion(output, batch.targets, num_boxes)
            except ValueError as error:  # the matcher raises if predictions are not finite
                failure = error
            else:
                with autocast(state.precision, state.device):
                    losses = with_mimicking(
                        state.model, criterion, batch, output, result, num_boxes
                    )
                metrics = detection_metrics(
                    output.last,
                    batch.targets,
                    result.last_match,
                    num_images=totals.images_per_process,
                    num_objects=totals.objects_per_process,
                )
                values = _add(values, losses | metrics)
            if is_last:
                require_finite(values, failure, step=state.step, device=state.device)
            if failure is None:
                state.scaler.scale(losses["total"]).backward()
    return values


def _in_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _add(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    detached = {name: value.detach() for name, value in second.items()}
    return {name: first[name] + value if first else value for name, value in detached.items()}


def _validate(state: TrainState, loop: _Run) -> str:
    """Evaluate, record the result, save the weights if they are the best; return a log line."""
    record, detections = loop.validation.measure(state, loop.criterion, loop.stop)
    loop.folder.record("evaluation", record)
    warn_of_zero_ap(loop.folder, loop.validation.annotations, detections)
    state.evaluated = state.step
    if loop.early_stopping is not None:
        loop.early_stopping.note(state, record["AP"])
    if state.best_ap is None or record["AP"] > state.best_ap:
        state.best_ap = record["AP"]
        loop.folder.keep_detections(detections, state.step)
        if distributed.is_main():
            loop.writer.write(loop.folder.best, state.to_checkpoint())
    return f"step {state.step}: AP {record['AP']:.3f}, AP50 {record['AP50']:.3f}"


def _save(state: TrainState, loop: _Run) -> None:
    if distributed.is_main():
        loop.writer.write(loop.folder.last, state.to_checkpoint(), previous=loop.folder.previous)
