"""Random maps and weights for tests of level fusion."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Randomize weights and batch statistics, so that initial zeros hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            spread = 1 / max(1, tensor[0].numel()) ** 0.5
            tensor.copy_(spread * torch.randn(tensor.shape, generator=generator))


def random_maps(
    channels: Sequence[int], sizes: Sequence[tuple[int, int]], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [torch.randn(2, c, *s, dtype=dtype) for c, s in zip(channels, sizes, strict=True)]


def halved_sizes(height: int, width: int, num_levels: int) -> list[tuple[int, int]]:
    return [(-(-height >> level), -(-width >> level)) for level in range(num_levels)]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
