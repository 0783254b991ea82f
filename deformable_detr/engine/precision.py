"""What a training step computes in low precision, and the loss scale that float16 needs.

Autocast is around the detector's forward pass only; the detector itself keeps boxes and
coordinates in float32. Matching and losses are in float32, as are weights, gradients and the
optimiser. Evaluation has no autocast: scores rounded to bfloat16 tie, and AP is to be comparable
between runs of any precision.
"""

import logging
from typing import Literal

import torch
from torch.amp import GradScaler
from torch.optim import Optimizer

logger = logging.getLogger(__name__)
Precision = Literal["float32", "bfloat16", "float16"]
# A gradient that overflows even when it is not scaled up is not a matter of the scale.
MIN_LOSS_SCALE = 1.0

_AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class GradientOverflowError(RuntimeError):
    """A gradient is not finite in float16 at any loss scale; every process raises it."""


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; of no effect for "float32"."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def build_scaler(precision: Precision, device: torch.device) -> GradScaler:
    """PyTorch's loss scale for float16; for other precisions one that does nothing."""
    return GradScaler(device.type, enabled=precision == "float16")


def step_unless_overflown(optimizer: Optimizer, scaler: GradScaler) -> bool:
    """Take a step of the optimiser, or none where a gradient has overflowed, and halve the scale.

    Processes agree, as their gradients have been averaged and so are the same.

    Args:
        optimizer: its gradients have been unscaled.
        scaler: of the run.

    Returns:
        Whether the step was taken; if not, the same micro-batches are to be computed again.

    Raises:
        GradientOverflowError: the scale cannot be made smaller; no weight has been changed.
    """
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    new_scale = scaler.get_scale()
    if new_scale >= scale:
        return True
    if new_scale < MIN_LOSS_SCALE:
        raise GradientOverflowError(
            f"gradients must be finite in float16, got overflow at a loss scale of {scale:g}; "
            "lower the learning rate, or train with train.precision=bfloat16"
        )
    logger.info(
        "gradients overflowed in float16 at a loss scale of %g; the step is computed again at %g",
        scale,
        new_scale,
    )
    return False
