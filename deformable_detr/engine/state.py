"""TrainState: everything that training changes, and its conversion to and from a checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from deformable_detr import distributed
from deformable_detr.engine.checkpoints.checkpoint import (
    Checkpoint,
    load_weights,
    weights_for_inference,
)
from deformable_detr.engine.ema import ExponentialMovingAverage
from deformable_detr.engine.optimizer import restore_optimizer
from deformable_detr.engine.precision import Precision, build_scaler
from deformable_detr.engine.schedule import Schedule
from deformable_detr.environment import current_versions
from deformable_detr.finite import require_finite_weights
from deformable_detr.labels import LabelSpace

_EARLIER = "copy previous.pth over last.pth"


@dataclass
class TrainState:
    """State that training changes, and the identity of the run; a checkpoint is a copy of it.

    Attributes:
        model: the detector, on its device.
        optimizer: optimizer of the detector's parameters; its groups have an `initial_lr`.
        schedule: factor on the initial learning rates, by the number of steps taken.
        label_space: the classes of the detector.
        config: the resolved configuration, plain JSON.
        ema: moving average of the detector, or None for a run without one.
        precision: precision of the detector's forward pass in training.
        epoch: number of finished epochs.
        step: number of steps taken.
        best_ap: highest AP so far, or None before the first evaluation.
        origin: description of the initial weights; "" for those of the config.
        evaluated: step of the newest evaluation, or None before the first.
        reference_ap: for early stopping, the last AP that counted as a rise, or None before.
        evaluations_without_rise: for early stopping, the number of evaluations since then.
        scaler: gradient scaler for float16; disabled for other precisions.
        replica: the detector as the loop calls it, with gradients averaged over processes.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    label_space: LabelSpace
    config: dict[str, Any]
    ema: ExponentialMovingAverage | None = None
    precision: Precision = "float32"
    epoch: int = 0
    step: int = 0
    best_ap: float | None = None
    origin: str = ""
    evaluated: int | None = None
    reference_ap: float | None = None
    evaluations_without_rise: int = 0
    scaler: GradScaler = field(init=False, repr=False)
    replica: nn.Module = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.scaler = build_scaler(self.precision, self.device)
        self.replica = distributed.wrap_ddp(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the detector."""
        return next(self.model.parameters()).device

    def to_checkpoint(self) -> Checkpoint:
        """Return the state as a checkpoint; the two share their tensors."""
        return Checkpoint(
            model=self.model.state_dict(),
            ema=None if self.ema is None else self.ema.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            epoch=self.epoch,
            step=self.step,
            best_ap=self.best_ap,
            label_space=self.label_space,
            config=self.config,
            versions=current_versions(),
            origin=self.origin,
            evaluated=self.evaluated,
            reference_ap=self.reference_ap,
            evaluations_without_rise=self.evaluations_without_rise,
        )

    def restore(self, checkpoint: Checkpoint, what: str) -> None:
        """Restore the state from a checkpoint; `what` names it in errors.

        Learning rates, weight decay and schedule remain those of this run's config.

        Raises:
            ValueError: the checkpoint has other classes, another model or another optimizer, or
                holds weights only, or a weight to be restored is not finite.
        """
        if not {"state", "param_groups"} <= checkpoint.optimizer.keys():  # such as a converted file
            raise ValueError(
                f"{what} must hold the state of an optimizer to be resumed, got weights only; "
                "start a new run from them with --finetune-from"
            )
        checkpoint.label_space.require_same(self.label_space, this=what, that="the training set")
        require_finite_weights(checkpoint.model, what, "resume from an earlier one: " + _EARLIER)
        load_weights(self.model, checkpoint.model, what)
        if self.ema is not None:
            average = weights_for_inference(checkpoint)
            remedy = f"go on without it, train.ema_decay=0, or from an earlier one: {_EARLIER}"
            require_finite_weights(average, f"the moving average of {what}", remedy)
            load_weights(self.ema.model, average, what)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        if checkpoint.scaler:  # else the run was not in float16
            self.scaler.load_state_dict(checkpoint.scaler)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.best_ap = checkpoint.best_ap
        self.origin = checkpoint.origin
        self.evaluated = checkpoint.evaluated
        self.reference_ap = checkpoint.reference_ap
        self.evaluations_without_rise = checkpoint.evaluations_without_rise
