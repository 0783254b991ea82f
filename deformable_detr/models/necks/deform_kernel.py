"""Neck whose levels go through depthwise deformable kernels."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from deformable_detr.layers.deform_kernel import DeformKernelResidual
from deformable_detr.models.necks.channel_mapper import ChannelMapper
from deformable_detr.structures import Pyramid


class DeformKernelNeck(ChannelMapper):
    """The paper's neck, with a `DeformKernelResidual` on each map; starts as the paper's neck.

    Parameters of the mapper have the same names as without the residuals.

    Args:
        channels: channels of the backbone's maps, finest first.
        embed_dim: C.
        num_levels: L, at least the number of maps.
        make_residual: makes the residual of one level.

    Raises:
        ValueError: see `ChannelMapper`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        embed_dim: int,
        num_levels: int,
        make_residual: Callable[[], DeformKernelResidual],
    ) -> None:
        super().__init__(channels, embed_dim=embed_dim, num_levels=num_levels)
        self.residuals = nn.ModuleList(make_residual() for _ in range(num_levels))

    def forward(self, features: Sequence[Tensor], padding_mask: Tensor) -> Pyramid:
        """See `Neck`."""
        pyramid = super().forward(features, padding_mask)
        maps = zip(self.residuals, pyramid.maps, strict=True)
        return replace(pyramid, maps=tuple(residual(features) for residual, features in maps))
