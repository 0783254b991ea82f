"""The training loop: `fit` calls `train_one_epoch` calls `train_step`."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.progress import TrainingProgress
from deformable_detr.engine.run.stopping import PreemptedError, StopRequest
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import (
    NonFiniteError,
    count_boxes,
    dropout_seed,
    mean_micro_batches,
    require_finite,
    with_mimicking,
)
from deformable_detr.losses.criterion import SetCriterion

logger = logging.getLogger(__name__)
MAX_GRAD_NORM = 0.1  # official recipe
EPOCHS = 50  # official recipe
CHECKPOINT_EVERY = 500  # steps


def total_steps(steps_per_epoch: int, *, epochs: int, max_steps: int | None) -> int:
    """Where training ends: after so many epochs or steps, whichever comes first."""
    for name, value in (("epochs", epochs), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    end = epochs * steps_per_epoch
    return end if max_steps is None else min(end, max_steps)


def fit(
    state: TrainState,
    criterion: SetCriterion,
    loader: Iterable[Batch],
    sampler: StepSampler,
    *,
    folder: RunFolder,
    validation: Validation,
    seed: int,
    epochs: int = EPOCHS,
    max_steps: int | None = None,
    max_grad_norm: float = MAX_GRAD_NORM,
    log_every_steps: int = 10,
    checkpoint_every_steps: int = CHECKPOINT_EVERY,
    stop: StopRequest | None = None,
    timeout_s: float = distributed.TIMEOUT_S,
) -> None:
    """Train from where `state` is to the end; checkpoints, metrics and curves go to `folder`.

    A process that is killed loses the steps since the newest checkpoint: at most
    `checkpoint_every_steps`, and those taken while that one was being written.

    Args:
        state: is trained.
        criterion: computes the losses.
        loader: this process's micro-batches, in the order of `sampler`.
        sampler: is told the epoch, and the step to start at.
        folder: claimed for this run.
        validation: what to evaluate on, and when.
        seed: of dropout; samples and augmentation have theirs from the loader.
        epochs: passes over the training set; each ends with a checkpoint.
        max_steps: steps after which training ends even within an epoch, or None.
        max_grad_norm: 2-norm that gradients are clipped to; 0 for no clipping.
        log_every_steps: steps from one record in the metrics file to the next.
        checkpoint_every_steps: steps from one checkpoint within an epoch to the next.
        stop: may ask for an end before the last step; None is never asked.
        timeout_s: of no progress, after which several processes end and name who is to blame.

    Raises:
        PreemptedError: it was asked to stop, in every process; the state is saved.
        RuntimeError: a checkpoint could not be written.
    """
    end = total_steps(sampler.steps_per_epoch, epochs=epochs, max_steps=max_steps)
    if state.step >= end and not validation.is_due(state, sampler.steps_per_epoch, end):
        logger.info("nothing is left to train: step %d of %d", state.step, end)
        return
    with (
        Watchdog(timeout_s) as watchdog,
        CheckpointWriter() as writer,
        TrainingProgress(first_step=state.step, last_step=end) as progress,
    ):
        loop = TrainLoop(
            criterion=criterion,
            loader=watchdog.over(loader, "a training batch"),
            sampler=sampler,
            end=end,
            folder=folder,
            validation=validation.watched_by(watchdog),
            progress=progress,
            recorder=FailureRecorder(folder, criterion, seed=seed),
            writer=writer,
            stop=stop or StopRequest(),
            seed=seed,
            max_grad_norm=max_grad_norm,
            log_every_steps=log_every_steps,
            checkpoint_every_steps=checkpoint_every_steps,
        )
        loop.recorder.note(state)
        try:
            loop.stop.check()
            _take_epochs(state, loop)
        except PreemptedError:
            state.epoch = state.step // sampler.steps_per_epoch
            _save(state, loop)
            raise
    if distributed.is_main():
        draw_curves(folder.metrics, folder.curves)


@dataclass(frozen=True)
class TrainLoop:
    """What `fit` gives to all epochs: its arguments, and what the run writes and asks."""

    criterion: SetCriterion
    loader: Iterable[Batch]
    sampler: StepSampler
    end: int
    folder: RunFolder
    validation: Validation
    progress: TrainingProgress
    recorder: FailureRecorder
    writer: CheckpointWriter
    stop: StopRequest
    seed: int
    max_grad_norm: float
    log_every_steps: int
    checkpoint_every_steps: int


def _take_epochs(state: TrainState, loop: TrainLoop) -> None:
    """Evaluate where it is due, and train, until the last step."""
    steps_per_epoch = loop.sampler.steps_per_epoch
    while True:
        if loop.validation.is_due(state, steps_per_epoch, loop.end):
            loop.progress.say(_validate(state, loop))
            _save(state, loop)
        if state.step >= loop.end:
            return
        state.epoch, done = divmod(state.step, steps_per_epoch)
        loop.sampler.set_epoch(state.epoch)
        loop.sampler.start_at(done)
        train_one_epoch(state, loop)
        if state.step != min(loop.end, (state.epoch + 1) * steps_per_epoch):
            raise ValueError(
                f"loader must yield the micro-batches of {steps_per_epoch} steps an epoch "
                f"as the sampler does, got {state.step} steps after epoch {state.epoch}"
            )
        state.epoch = state.step // steps_per_epoch
        loop.progress.say(record_peak_memory(state, loop.folder))
        _save(state, loop)


def train_one_epoch(state: TrainState, loop: TrainLoop) -> None:
    """Take the steps that the loader has micro-batches for, until the last one."""
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
    max_grad_norm: float = MAX_GRAD_NORM,
) -> dict[str, Tensor]:
    """Take one optimiser step on this process's micro-batches of a global batch.

    The gradient is that of the whole global batch at once, over all processes.

    Args:
        state: one step further afterwards.
        batches: the micro-batches, on any device.
        criterion: computes the losses.
        seed: of dropout.
        max_grad_norm: as for `fit`.

    Returns:
        The losses, the metrics, and the 2-norm of the gradient before clipping; scalars on
        the device, to be averaged over processes.

    Raises:
        NonFiniteError: in every process if in one; no weight has been changed.
    """
    num_boxes = count_boxes(batches)
    scale_learning_rates(state.optimizer, state.schedule(state.step))
    while True:  # once, but for float16, whose gradients overflow until the loss scale has settled
        state.optimizer.zero_grad()
        values = _accumulate_gradients(state, batches, criterion, num_boxes, seed=seed)
        state.scaler.unscale_(state.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_grad_norm or math.inf)
        if grad_norm.isfinite():  # in every process, as all have summed the same gradients
            break
        if not lower_loss_scale(state.scaler):
            raise NonFiniteError(
                f"the gradient of step {state.step} must be finite, got {grad_norm}"
            )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema is not None:
        state.ema.update(state.model, step=state.step)
    state.step += 1
    return values | {"grad_norm": grad_norm}


def _accumulate_gradients(
    state: TrainState,
    batches: Sequence[Batch],
    criterion: SetCriterion,
    num_boxes: float,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Add the gradients of all micro-batches up, times the loss scale; their losses, metrics."""
    values: dict[str, Tensor] = {}
    weight = 1 / mean_micro_batches(batches)  # of a micro-batch in the mean over processes
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
                output = state.replica(batch.images)
            try:
                result = criterion(output, batch.targets, num_boxes)
            except ValueError as error:  # the matcher refuses predictions that are not finite
                failure = error
            else:
                with autocast(state.precision, state.device):
                    losses = with_mimicking(
                        state.model, criterion, batch, output, result, num_boxes
                    )
                metrics = detection_metrics(output.last, batch.targets, result.last_match)
                shares = {name: value * weight for name, value in metrics.items()}
                values = _add(values, losses | shares)
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


def _validate(state: TrainState, loop: TrainLoop) -> str:
    """Evaluate, record the result, keep the weights if they are the best; a line for people."""
    record, detections = loop.validation.measure(state, loop.criterion, loop.stop)
    loop.folder.record("evaluation", record)
    warn_of_zero_ap(loop.folder, loop.validation.annotations, detections)
    state.evaluated = state.step
    if state.best_ap is None or record["AP"] > state.best_ap:
        state.best_ap = record["AP"]
        loop.folder.keep_detections(detections, state.step)
        if distributed.is_main():
            loop.writer.write(loop.folder.best, state.to_checkpoint())
    return f"step {state.step}: AP {record['AP']:.3f}, AP50 {record['AP50']:.3f}"


def _save(state: TrainState, loop: TrainLoop) -> None:
    if distributed.is_main():
        loop.writer.write(loop.folder.last, state.to_checkpoint(), previous=loop.folder.previous)
