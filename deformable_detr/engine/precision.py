"""Precision of a training step, the loss scale that float16 needs, and deterministic algorithms.

Autocast is around the detector's forward pass only; the detector itself keeps boxes and
coordinates in float32. Matching and losses are in float32, as are weights, gradients and the
optimiser. Evaluation has no autocast: scores rounded to bfloat16 tie, and AP is to be comparable
between runs of any precision.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.amp import GradScaler

logger = logging.getLogger(__name__)
Precision = Literal["float32", "bfloat16", "float16"]
# A gradient that overflows even when it is not scaled up is not a matter of the scale.
MIN_LOSS_SCALE = 1.0

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def low_precision(precision: str) -> torch.dtype | None:
    """The dtype of autocast, or None for none."""
    return _DTYPES[precision]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; of no effect for "float32"."""
    dtype = low_precision(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def build_scaler(precision: Precision, device: torch.device) -> GradScaler:
    """PyTorch's loss scale for float16; for other precisions one that does nothing."""
    return GradScaler(device.type, enabled=precision == "float16")


def lower_loss_scale(scaler: GradScaler) -> bool:
    """Halve the loss scale after an overflow, so that the step can be computed again.

    Processes agree, as their gradients have been averaged and so are the same.

    Returns:
        False where the scale is not to blame: there is none, or it is as low as it may be.
    """
    scale = scaler.get_scale()
    if not scaler.is_enabled() or scale <= MIN_LOSS_SCALE:
        return False
    scaler.update(scale * scaler.get_backoff_factor())
    logger.info(
        "gradients overflowed in float16 at a loss scale of %g; the step is computed again at %g",
        scale,
        scaler.get_scale(),
    )
    return True


# cuBLAS is deterministic with workspaces of its own only: NVIDIA, "Results reproducibility".
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Within it, PyTorch and our operators take their deterministic kernels, or raise an error.

    To be entered before the process computes anything on a GPU. On a CPU two runs are equal
    bitwise without it, given the same number of threads.

    Args:
        enabled: else nothing changes.
    """
    if not enabled:
        yield
        return
    name, value = _WORKSPACE
    workspace = os.environ.get(name)
    os.environ.setdefault(name, value)
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # which chooses kernels by their speed of the moment
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[name]
