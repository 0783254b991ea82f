"""Plain PyTorch operators: the truth that every other back-end is measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.structures import LevelShapes

# Far enough outside for a level of any size, and small enough to be an exact grid coordinate.
_OUTSIDE_LOW, _OUTSIDE_HIGH = -2.0, 3.0


def ms_deform_attn_core_pytorch(
    value: Tensor,
    level_shapes: LevelShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `deformable_detr.ops.ms_deform_attn`."""
    N, S, M, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    if 0 in (N, S, M, D, Q, P):
        # Zeros that depend on every input, so that each has a gradient, of zeros.
        inputs = (value, sampling_locations, attention_weights)
        nothing = sum(tensor.flatten()[:0].sum() for tensor in inputs)
        return (value.new_zeros(N, Q, M * D) + nothing).to(value.dtype)
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
        if level_sizes[level] == 0:  # grid_sample refuses it
            samples.append(level_value.new_zeros(N * M, D, Q, P))
            continue
        maps = level_value.permute(0, 2, 3, 1).reshape(N * M, D, *level_shapes[level])
        level_grid = grid[:, :, :, level].transpose(1, 2).reshape(N * M, Q, P, 2)
        samples.append(F.grid_sample(maps, level_grid, align_corners=False))  # (N * M, D, Q, P)

    weights = attention_weights.transpose(1, 2).reshape(N * M, 1, Q, L, P)
    output = (torch.stack(samples, dim=3) * weights).sum((3, 4))  # (N * M, D, Q)
    return output.view(N, M * D, Q).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_fused_pytorch(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """See `deformable_detr.ops.ms_deform_attn_fused`."""
    locations = sampling_locations(reference_points, sampling_offsets, level_shapes)
    weights = attention_logits.flatten(3).softmax(-1).view_as(attention_logits)
    return ms_deform_attn_core_pytorch(value, level_shapes, locations, weights)


def sampling_locations(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    level_shapes: LevelShapes,
) -> Tensor:
    """Sampling points: reference points plus offsets in their units.

    Args:
        reference_points: (N, Q, L, 2) points or (N, Q, L, 4) boxes cxcywh, relative.
        sampling_offsets: (N, Q, M, L, P, 2) (x, y), in cells from points; from boxes, in
            halves of the box's size divided by P.
        level_shapes: (height, width) of the L levels.

    Returns:
        (N, Q, M, L, P, 2) points (x, y) relative to the padded levels; NaN where a number that a
        point is made of is not finite. Such a point has no gradient.
    """
    # Zero times infinity is NaN, so what is not finite must not enter a product in the backward.
    references = reference_points.nan_to_num(0.0, 0.0, 0.0)[:, :, None, :, None]
    offsets = sampling_offsets.nan_to_num(0.0, 0.0, 0.0)
    if reference_points.shape[-1] == 2:
        # Filled on the device: nothing to wait for, and sizes stay symbolic under torch.compile.
        # A level without cells has no sample, wherever its points lie.
        sizes = [
            offsets.new_full((1,), max(size, 1))
            for height, width in level_shapes
            for size in (width, height)
        ]
        locations = references + offsets / torch.cat(sizes).view(-1, 1, 2)
    else:
        extents = references[..., 2:]
        locations = references[..., :2] + offsets / offsets.shape[-2] * extents * 0.5
    is_finite = reference_points.unflatten(-1, (-1, 2)).isfinite().all(-2)  # (N, Q, L, 2)
    is_finite = is_finite[:, :, None, :, None] & sampling_offsets.isfinite()
    return locations.masked_fill(~is_finite, torch.nan)
