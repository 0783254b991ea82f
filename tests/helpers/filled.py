"""Tensors with values that follow from a name, for constants recorded elsewhere."""

import math
import zlib

import torch
from torch import Tensor


def filled(name: str, *shape: int) -> Tensor:
    """Return float32 values of zero mean and unit variance that depend on name and place only."""
    start = zlib.crc32(name.encode()) % 100003
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    noise = 43758.5453 * torch.sin(12.9898 * places + 0.001 * start)
    return (math.sqrt(3) * (2 * (noise - noise.floor()) - 1)).reshape(shape).float()


def filled_weight(name: str, *shape: int) -> Tensor:
    """Return `filled` values divided by the root of the fan-in, as of a weight."""
    return filled(name, *shape) / math.sqrt(math.prod(shape[1:]))
