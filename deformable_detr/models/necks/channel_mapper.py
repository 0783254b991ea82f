"""ChannelMapper: 1x1 projections, and strided convolutions for further levels."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deformable_detr.models.necks.base import Neck
from deformable_detr.structures import Pyramid, Size

_NORM_GROUPS = 32


class ChannelMapper(Neck):
    """The paper's neck (Deformable DETR, appendix A.2).

    Every backbone map goes through a 1x1 convolution and group norm. Further levels come from
    3x3 convolutions of stride 2: the first reads the backbone's last map itself, each later one
    the level before it.

    Args:
        channels: channels of the backbone's maps, finest first.
        embed_dim: C, a multiple of 32, at least 64.
        num_levels: L, at least the number of maps.

    Raises:
        ValueError: `embed_dim` or `num_levels` does not fit.
    """

    def __init__(self, channels: Sequence[int], *, embed_dim: int, num_levels: int) -> None:
        super().__init__()
        if num_levels < len(channels):
            raise ValueError(
                f"num_levels must be at least the backbone's {len(channels)} maps, "
                f"got {num_levels}; ask for fewer out_strides"
            )
        if embed_dim % _NORM_GROUPS or embed_dim == _NORM_GROUPS:
            # With one channel per group, a map of one cell would have nothing to normalize.
            raise ValueError(
                f"embed_dim must be a multiple of {_NORM_GROUPS} and above it, got {embed_dim}"
            )
        self.num_levels = num_levels
        projections = [nn.Conv2d(width, embed_dim, kernel_size=1) for width in channels]
        width = channels[-1]
        for _ in range(num_levels - len(channels)):
            projections.append(nn.Conv2d(width, embed_dim, kernel_size=3, stride=2, padding=1))
            width = embed_dim
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
            assert projection.bias is not None
            nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleList(projections)
        self.norms = nn.ModuleList(nn.GroupNorm(_NORM_GROUPS, embed_dim) for _ in range(num_levels))

    def forward(self, features: Sequence[Tensor], padding_mask: Tensor) -> Pyramid:
        """See `Neck`."""
        maps: list[Tensor] = []
        for level, (projection, norm) in enumerate(zip(self.projections, self.norms, strict=True)):
            if level < len(features):
                source = features[level]
            else:
                source = features[-1] if level == len(features) else maps[-1]
            maps.append(norm(projection(source)))
        masks = [_resize_mask(padding_mask, (m.shape[2], m.shape[3])) for m in maps]
        return Pyramid(tuple(maps), tuple(masks))


def _resize_mask(padding_mask: Tensor, size: Size) -> Tensor:
    """Resize an (N, H, W) bool mask to the nearest neighbors."""
    return F.interpolate(padding_mask[:, None].float(), size=size)[:, 0].bool()
