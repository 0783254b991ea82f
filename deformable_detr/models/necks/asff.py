"""ASFF: adaptively spatial feature fusion, and a neck that applies it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from deformable_detr.models.necks.channel_mapper import ChannelMapper
from deformable_detr.models.necks.level_fusion import (
    Activation,
    FusedLevel,
    FusionInit,
    FusionNorm,
    LevelFusion,
)
from deformable_detr.structures import Pyramid, Size


class ASFF(nn.Module):
    """Adaptively spatial feature fusion of maps of one width: one `LevelFusion` per level.

    Args:
        channels: C, of every level; a multiple of 32 with norm "group".
        num_levels: L, at least 2.
        rfb: halve the width of the weight blocks; see `LevelFusion` for this and all that follow.
        norm: "group", or "batch" for large batches.
        activation: "leaky_relu", "silu", or, with init "uniform", "relu6".
        init: "own" starts as the identity, "uniform" as the original.
        compress_equal: whether coarser levels go through a 1x1 block too.
        mask_padding: set the padding to zero before the maps are resized, so that it does not
            leak into other cells; the residual of init "own" keeps it.
        logit_activation: only for weights of a published YOLOv5 variant.

    Raises:
        ValueError: arguments contradict each other.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        *,
        rfb: bool = False,
        norm: FusionNorm = "group",
        activation: Activation = "leaky_relu",
        init: FusionInit = "own",
        compress_equal: bool = True,
        mask_padding: bool = False,
        logit_activation: bool = False,
    ) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(
                f"num_levels must be at least 2, got {num_levels}; one level has nothing to fuse"
            )
        self.num_levels = num_levels
        self.mask_padding = mask_padding
        self.levels = nn.ModuleList(
            LevelFusion(
                (channels,) * num_levels,
                level,
                rfb=rfb,
                norm=norm,
                activation=activation,
                init=init,
                compress_equal=compress_equal,
                logit_activation=logit_activation,
            )
            for level in range(num_levels)
        )

    def forward(
        self, maps: Sequence[Tensor], padding_masks: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """Fuse the levels.

        Args:
            maps: L tensors (N, C, H_l, W_l), finest first; a side is half of that of the level
                before, rounded up or down.
            padding_masks: L tensors (N, H_l, W_l) bool; required with `mask_padding` only.

        Returns:
            L tensors of the same shapes.

        Raises:
            ValueError: the number of maps is not L, their sizes do not halve, or masks are missing.
        """
        return tuple(level.output for level in self.inspect(maps, padding_masks))

    def inspect(
        self, maps: Sequence[Tensor], padding_masks: Sequence[Tensor] | None = None
    ) -> tuple[FusedLevel, ...]:
        """Fuse the levels, and return the weights and sums behind each output; see `forward`."""
        self._check_sizes([(m.shape[2], m.shape[3]) for m in maps])
        sources = maps
        if self.mask_padding:
            if padding_masks is None:
                raise ValueError("padding_masks must be given with mask_padding, got None")
            sources = [
                features.masked_fill(mask[:, None], 0.0)
                for features, mask in zip(maps, padding_masks, strict=True)
            ]
        return tuple(
            fusion(sources, residual) for fusion, residual in zip(self.levels, maps, strict=True)
        )

    def _check_sizes(self, sizes: Sequence[Size]) -> None:
        if len(sizes) != self.num_levels:
            raise ValueError(f"number of maps must be {self.num_levels}, got {len(sizes)}")
        for finer, coarser in itertools.pairwise(sizes):
            for side, half in zip(finer, coarser, strict=True):
                if half not in (side // 2, (side + 1) // 2):
                    raise ValueError(
                        f"maps must halve from level to level, got sizes {tuple(sizes)}; "
                        "ask for out_strides that double"
                    )


class ASFFNeck(ChannelMapper):
    """The paper's neck followed by ASFF; masks and geometry are unchanged.

    Parameters of the mapper have the same names as without the fusion.

    Args:
        channels: channels of the backbone's maps, finest first.
        embed_dim: C, the fusion's channels.
        fusion: fusion with the number of levels of the pyramid.

    Raises:
        ValueError: see `ChannelMapper`.
    """

    def __init__(self, channels: Sequence[int], *, embed_dim: int, fusion: ASFF) -> None:
        super().__init__(channels, embed_dim=embed_dim, num_levels=fusion.num_levels)
        self.fusion = fusion

    def forward(self, features: Sequence[Tensor], padding_mask: Tensor) -> Pyramid:
        """See `Neck`."""
        pyramid = super().forward(features, padding_mask)
        return replace(pyramid, maps=self.fusion(pyramid.maps, pyramid.padding_masks))
