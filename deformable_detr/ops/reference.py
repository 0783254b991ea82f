"""Plain PyTorch operators: the truth that every other back-end is measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Far enough outside for a level of any size, and small enough to be an exact grid coordinate.
_OUTSIDE_LOW, _OUTSIDE_HIGH = -2.0, 3.0


def ms_deform_attn_core_pytorch(
    value: Tensor,
    level_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `deformable_detr.ops.ms_deform_attn`."""
    N, _, M, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    # A low-precision value is rounded once, at the end.
    compute_dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # The clamp moves no sample that counts; it keeps infinite and NaN points outside.
    locations = sampling_locations.nan_to_num(
        nan=_OUTSIDE_LOW, posinf=_OUTSIDE_HIGH, neginf=_OUTSIDE_LOW
    ).clamp(_OUTSIDE_LOW, _OUTSIDE_HIGH)
    # grid_sample wants (x, y) in [-1, 1], where -1 and 1 are the outer edges of the map.
    grid = 2 * locations - 1

    samples = []
    level_sizes = [height * width for height, width in level_shapes]
    for level, level_value in enumerate(value.to(compute_dtype).split(level_sizes, dim=1)):
        maps = level_value.permute(0, 2, 3, 1).reshape(N * M, D, *level_shapes[level])
        level_grid = grid[:, :, :, level].transpose(1, 2).reshape(N * M, Q, P, 2)
        samples.append(F.grid_sample(maps, level_grid, align_corners=False))  # (N * M, D, Q, P)

    weights = attention_weights.transpose(1, 2).reshape(N * M, 1, Q, L, P)
    output = (torch.stack(samples, dim=3) * weights).sum((3, 4))  # (N * M, D, Q)
    return output.view(N, M * D, Q).transpose(1, 2).contiguous().to(value.dtype)
