"""Precision of a training step, the loss scale that float16 needs, and deterministic algorithms.

Autocast wraps the detector's forward pass only; the detector itself keeps boxes and coordinates
in float32. Matching and losses are in float32, as are weights, gradients and the optimizer.
Evaluation runs without autocast: scores rounded to bfloat16 tie, and AP should be comparable
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
# A gradient that overflows even without being scaled up does so for another reason.
MIN_LOSS_SCALE = 1.0

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def low_precision(precision: str) -> torch.dtype | None:
    """Return the dtype of autocast, or None for "float32", which runs without it."""
    return _DTYPES[precision]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context of a forward pass; disabled for "float32"."""
    dtype = low_precision(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def build_scaler(precision: Precision, device: torch.device) -> GradScaler:
    """Return PyTorch's gradient scaler, enabled for float16 only."""
    return GradScaler(device.type, enabled=precision == "float16")


def lower_loss_scale(scaler: GradScaler) -> bool:
    """Halve the loss scale after an overflow, so that the step can be computed again.

    All processes take the same decision, as their averaged gradients are the same.

    Returns:
        False if the scale is not the cause: it is disabled, or already at its minimum.
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


# cuBLAS is deterministic only with such a workspace: NVIDIA, "Results reproducibility".
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Make PyTorch and our operators use deterministic kernels, or raise, within the context.

    Enter it before the process computes anything on a GPU. On a CPU two runs are bitwise equal
    without it, given the same number of threads.

    Args:
        enabled: if False, the context does nothing.
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
    torch.backends.cudnn.benchmark = False  # it selects kernels by their measured speed
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[name]
