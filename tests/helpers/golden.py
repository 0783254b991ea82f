"""Two small padded levels, for golden values from the official code."""

import torch

from deformable_detr.structures import Memory

LEVEL_SHAPES = ((2, 3), (1, 2))


def golden_memory() -> Memory:
    """Build a memory of two levels whose last column is padding."""
    return Memory(
        tokens=torch.zeros(1, 8, 4),
        positions=torch.zeros(1, 8, 4),
        padding_mask=torch.tensor([[0, 0, 1, 0, 0, 1, 0, 1]], dtype=torch.bool),
        level_shapes=LEVEL_SHAPES,
        valid_ratios=torch.tensor([[[2 / 3, 1.0], [1 / 2, 1.0]]]),
    )
