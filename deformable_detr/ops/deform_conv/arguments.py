"""Arguments of a deformable convolution: checks, geometry and compute dtype."""

import torch
from torch import Tensor

from deformable_detr.ops.geometry import ConvGeometry, IntPair


def checked_geometry(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
    mask: Tensor | None,
) -> ConvGeometry:
    """Check the arguments of `deform_conv2d`, and return the geometry of the convolution.

    Raises:
        ValueError: shapes disagree.
    """
    for name, tensor in (("input", input), ("offset", offset), ("weight", weight)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions, got shape {tuple(tensor.shape)}")
    N, C = input.shape[:2]
    out_channels, channels_per_group, k_h, k_w = weight.shape
    if C % channels_per_group or out_channels % (C // channels_per_group):
        raise ValueError(
            "weight must have shape (O, C / groups, k_h, k_w) with C and O divisible by "
            f"groups, got {tuple(weight.shape)} for C = {C}"
        )
    taps = k_h * k_w
    offset_groups = offset.shape[1] // (2 * taps)
    geometry = ConvGeometry.of((k_h, k_w), stride, padding, dilation)
    size = (input.shape[2], input.shape[3])
    places = geometry.output_size(size)
    if min(places) < 1:
        raise ValueError(
            f"input must be as large as the kernel {geometry.kernel_size} of dilation "
            f"{geometry.dilation}, got {size} with padding {geometry.padding}"
        )
    if offset_groups < 1 or tuple(offset.shape) != (N, 2 * offset_groups * taps, *places):
        raise ValueError(
            f"offset must have shape (N, 2 * G * K, H_out, W_out) with N = {N}, K = {taps} "
            f"and (H_out, W_out) = {places}, got {tuple(offset.shape)}"
        )
    if C % offset_groups:
        raise ValueError(
            f"the channels of input must be divisible by the G = {offset_groups} groups of "
            f"offset, got {C}"
        )
    expected = (N, offset_groups * taps, *places)
    if mask is not None and tuple(mask.shape) != expected:
        raise ValueError(f"mask must have shape {expected}, got {tuple(mask.shape)}")
    return geometry


def compute_dtype(input: Tensor, offset: Tensor) -> torch.dtype:
    """Return the wider dtype of both, and at least float32."""
    return torch.promote_types(torch.promote_types(input.dtype, offset.dtype), torch.float32)
