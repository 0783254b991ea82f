"""MSDeformAttn: multi-scale deformable attention with its projections."""

import math
import warnings

import torch
from torch import Tensor, nn

from deformable_detr.layers.precision import at_least_float32
from deformable_detr.ops import Backend, ms_deform_attn_fused
from deformable_detr.structures import LevelShapes


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Deformable DETR paper, equation 3).

    Each head of each query samples `num_points` points in every level. Their offsets from the
    query's reference point and their weights are linear functions of the query. Parameter names
    are those of the published implementation.

    Args:
        embed_dim: C, a multiple of `num_heads`.
        num_heads: M.
        num_levels: L.
        num_points: P, per head and level.
        backend: back-end of `deformable_detr.ops.ms_deform_attn_fused`.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        num_levels: int,
        num_points: int,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, got {embed_dim} and {num_heads}"
            )
        head_dim = embed_dim // num_heads
        if head_dim & (head_dim - 1):
            warnings.warn(
                f"embed_dim / num_heads = {head_dim} is not a power of two, for which the "
                "operator is slower",
                stacklevel=2,
            )
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.backend = backend
        num_samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_samples * 2)
        self.attention_weights = nn.Linear(embed_dim, num_samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Start head m in the direction 2 pi m / M, with point p at a distance of p + 1 cells."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # onto a square
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]  # (M, 1, P, 2)
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        level_shapes: LevelShapes,
        padding_mask: Tensor,
    ) -> Tensor:
        """Attend from every query to the memory.

        Args:
            query: (N, Q, C) queries with their position embedding added.
            reference_points: (N, Q, L, 2) points (x, y) or (N, Q, L, 4) boxes cxcywh, relative
                to the padded levels. Offsets are in cells of a level from a point, and in
                halves of a P-th of its size from a box.
            value: (N, S, C) memory tokens without position embedding.
            level_shapes: (height, width) of the L levels.
            padding_mask: (N, S) bool; tokens where it is True are never read.

        Returns:
            (N, Q, C).

        Raises:
            ValueError: `reference_points` does not end in 2 or 4.
        """
        N, Q, _ = query.shape
        M, L, P = self.num_heads, self.num_levels, self.num_points
        # After the projection, so that the bias is removed from the padding too.
        projected = self.value_proj(value).masked_fill(padding_mask[..., None], 0.0)
        projected = projected.view(N, value.shape[1], M, -1)
        # Coordinates and weights never have low precision, even under autocast.
        offsets = at_least_float32(self.sampling_offsets(query)).view(N, Q, M, L, P, 2)
        logits = at_least_float32(self.attention_weights(query)).view(N, Q, M, L, P)
        output = ms_deform_attn_fused(
            projected,
            level_shapes,
            reference_points.to(offsets.dtype),
            offsets,
            logits,
            backend=self.backend,
        )
        return self.output_proj(output)
