"""Helpers that keep coordinates out of low precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or in float32 if its dtype is narrower.

    Between 0.5 and 1, bfloat16 has steps of 2^-8: more than half a cell of a map 167 cells wide.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, a no-op if it is off to keep exported graphs plain."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
