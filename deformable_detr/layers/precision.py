"""The rule that coordinates are never of low precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where autocast has made it narrower.

    Between 0.5 and 1 bfloat16 has steps of 2^-8: half a cell of a 167 cells wide map.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Full precision; without autocast nothing, so that exported graphs stay plain."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
