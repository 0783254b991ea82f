"""Conversion of the pyramid to the sequence of tokens that attention reads, and its geometry."""

import torch
from torch import Tensor, nn

from deformable_detr.structures import LevelShapes, Memory, Pyramid


class MemoryBuilder(nn.Module):
    """Module that flattens the pyramid and adds position and level embeddings.

    Args:
        position: (N, H, W) padding mask -> (N, C, H, W) embedding.
        embed_dim: C.
        num_levels: L.
    """

    def __init__(self, position: nn.Module, *, embed_dim: int, num_levels: int) -> None:
        super().__init__()
        self.position = position
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embed)

    def forward(self, pyramid: Pyramid, valid_ratio: Tensor | None = None) -> Memory:
        """Flatten the levels one after another, each row by row.

        Args:
            pyramid: L levels.
            valid_ratio: (N, 2) share of the (width, height) in pixels that is not padding, if the
                levels divide the padded images without a remainder. If None, each level's share is
                counted in its cells, as in the official code.
        """
        tokens = [features.flatten(2).transpose(1, 2) for features in pyramid.maps]
        positions = [
            self.position(mask).to(features.dtype).flatten(2).transpose(1, 2) + embed
            for features, mask, embed in zip(
                pyramid.maps, pyramid.padding_masks, self.level_embed, strict=True
            )
        ]
        masks = [mask.flatten(1) for mask in pyramid.padding_masks]
        ratios = [
            valid_share(mask) if valid_ratio is None else valid_ratio
            for mask in pyramid.padding_masks
        ]
        return Memory(
            tokens=torch.cat(tokens, dim=1),
            positions=torch.cat(positions, dim=1),
            padding_mask=torch.cat(masks, dim=1),
            level_shapes=tuple((m.shape[2], m.shape[3]) for m in pyramid.maps),
            valid_ratios=torch.stack(ratios, dim=1).to(self.level_embed.dtype),
        )


def valid_share(padding_mask: Tensor) -> Tensor:
    """Compute the (N, 2) share of the (width, height) that is not padding, from (N, H, W) bool."""
    valid = ~padding_mask
    return torch.stack((valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)), dim=-1)


def cell_centers(level_shapes: LevelShapes, valid_ratios: Tensor) -> Tensor:
    """Return the centers of all cells, relative to the image without padding.

    Args:
        level_shapes: (height, width) of the L levels.
        valid_ratios: (N, L, 2) share of each level's (width, height) that is not padding.

    Returns:
        (N, S, 2) points (x, y); beyond 1 on padding.
    """
    centers = []
    for level, (height, width) in enumerate(level_shapes):
        y = (torch.arange(height, device=valid_ratios.device) + 0.5) / height
        x = (torch.arange(width, device=valid_ratios.device) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack((grid_x.flatten(), grid_y.flatten()), dim=-1).to(valid_ratios.dtype)
        centers.append(grid / valid_ratios[:, level, None])
    return torch.cat(centers, dim=1)


def encoder_reference_points(memory: Memory) -> Tensor:
    """Return the center of every token's cell, as a point of every level.

    Returns:
        (N, S, L, 2) points (x, y) relative to the padded levels, which are fixed, not learned.
    """
    centers = cell_centers(memory.level_shapes, memory.valid_ratios)
    return centers[:, :, None] * memory.valid_ratios[:, None]
