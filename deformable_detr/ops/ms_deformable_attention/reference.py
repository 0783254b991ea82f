"""Operators in plain PyTorch: the reference for all other back-ends."""

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
    """Compute `deformable_detr.ops.ms_deform_attn`."""
    N, S, M, D = value.shape
    _, Q, _, L, P, _ = sampling_locations.shape
    if 0 in (N, S, M, D, Q, P):
        # Zeros that depend on every input, so that each gets a gradient of zeros.
        inputs = (value, sampling_locations, attention_weights)
        nothing = sum(tensor.flatten()[:0].sum() for tensor in inputs)
        return (value.new_zeros(N, Q, M * D) + nothing).to(value.dtype)
    # With a low-precision value, the result is rounded only once, at the end.
    compute_dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    # The clamp only changes points outside the level; infinite and NaN points stay outside.
    locations = sampling_locations.nan_to_num(
        nan=_OUTSIDE_LOW, posinf=_OUTSIDE_HIGH, neginf=_OUTSIDE_LOW
    ).clamp(_OUTSIDE_LOW, _OUTSIDE_HIGH)
    # grid_sample expects (x, y) in [-1, 1], where -1 and 1 are the outer edges of the map.
    grid = 2 * locations - 1

    samples = []
    level_sizes = [height * width for height, width in level_shapes]
    for level, level_value in enumerate(value.to(compute_dtype).split(level_sizes, dim=1)):
        if level_sizes[level] == 0:  # grid_sample raises on empty maps
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
    """Compute `deformable_detr.ops.ms_deform_attn_fused`."""
    locations = sampling_locations(reference_points, sampling_offsets, level_shapes)
    weights = attention_logits.flatten(3).softmax(-1).view_as(attention_logits)
    return ms_deform_attn_core_pytorch(value, level_shapes, locations, weights)


def sampling_locations(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    level_shapes: LevelShapes,
) -> Tensor:
    """Compute sampling locations from reference points and offsets.

    Args:
        reference_points: (N, Q, L, 2) points or (N, Q, L, 4) boxes cxcywh, relative to the levels.
        sampling_offsets: (N, Q, M, L, P, 2) (x, y), in cells from points, and in units of
            size / (2 * P) from boxes.
        level_shapes: (height, width) of the L levels.

    Returns:
        (N, Q, M, L, P, 2) points (x, y) relative to the padded levels; NaN, without a gradient,
        where the reference or the offset is not finite.
    """
    # Zero times infinity is NaN: no non-finite number may enter a product of the backward pass.
    references = reference_points.nan_to_num(0.0, 0.0, 0.0)[:, :, None, :, None]
    offsets = sampling_offsets.nan_to_num(0.0, 0.0, 0.0)
    if reference_points.shape[-1] == 2:
        # Filled on the device: no synchronization, and sizes stay symbolic under torch.compile.
        # The size of an empty level is irrelevant: it has no samples.
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
