"""Interface of a backbone."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network that turns images into feature maps, finest first.

    Attributes:
        strides: pixels per cell of each map.
        channels: channels of each map.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]

    @abstractmethod
    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return the parts in the order they run, each with the stride of its output."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute a (N, channels, H_l, W_l) map per stride of (N, 3, H, W) normalized images."""


def require_strides(out_strides: Sequence[int], offered: Iterable[int], network: str) -> None:
    """Raise if the network lacks one of the strides, or they are not finest first.

    Raises:
        ValueError: names the available strides.
    """
    available = sorted(set(offered))
    increasing = all(fine < coarse for fine, coarse in itertools.pairwise(out_strides))
    if not out_strides or not increasing or not set(out_strides) <= set(available):
        raise ValueError(
            f"out_strides of {network} must be increasing and among {available}, "
            f"got {list(out_strides)}"
        )


def freeze(modules: Iterable[nn.Module]) -> None:
    """Exclude the parameters of the modules from training."""
    for module in modules:
        module.requires_grad_(False)
