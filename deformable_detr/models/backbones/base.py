"""Interface of a backbone."""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.pixels.channels import RGB
from deformable_detr.structures import ImageBatch, Size


class Backbone(nn.Module):
    """A network that turns images into feature maps, finest first.

    Attributes:
        strides: pixels per cell of each map.
        channels: channels of each map.
        in_channels: channels of the images.
        multiple: number of pixels of which the sides of its input must be multiples. With 1, any
            size will do: a map has ceil(side / stride) cells along a side. Otherwise it has
            side / stride cells, which cover the pixels without a remainder.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    in_channels: int = RGB
    multiple: int = 1

    @abstractmethod
    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return the parts in the order they run, each with the stride of its output."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute a (N, channels, H_l, W_l) map per stride of normalized images.

        The images are (N, in_channels, H, W).

        H and W are multiples of `multiple`.
        """

    def padded_size(self, size: Size) -> Size:
        """Return the (height, width) rounded up to multiples of `multiple`."""
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return height, width

    def share_of_padded(self, size: Size) -> tuple[float, float]:
        """Return the share of the padded (width, height) that is not padding."""
        (height, width), (padded_height, padded_width) = size, self.padded_size(size)
        return width / padded_width, height / padded_height

    def pad(self, images: ImageBatch) -> ImageBatch:
        """Pad a batch to the next size that the backbone takes, at the right and the bottom."""
        height, width = images.images.shape[2:]
        padded_height, padded_width = self.padded_size((height, width))
        if (padded_height, padded_width) == (height, width):
            return images
        margins = (0, padded_width - width, 0, padded_height - height)
        return ImageBatch(
            F.pad(images.images, margins), F.pad(images.padding_mask, margins, value=True)
        )


def require_strides(out_strides: Sequence[int], offered: Iterable[int], network: str) -> None:
    """Raise if the network lacks one of the strides, or they are not finest first.

    Raises:
        ValueError: names the available strides.
    """
    available = sorted(set(offered))
    remedy = [stride for stride in available if stride in out_strides] or available[-1:]
    increasing = all(fine < coarse for fine, coarse in itertools.pairwise(out_strides))
    if not out_strides or not increasing or not set(out_strides) <= set(available):
        raise ValueError(
            f"model.backbone.out_strides of {network} must be increasing and among {available}, "
            f"got {list(out_strides)}; choose {remedy}, for example"
        )


def freeze(modules: Iterable[nn.Module]) -> None:
    """Exclude the parameters of the modules from training."""
    for module in modules:
        module.requires_grad_(False)
