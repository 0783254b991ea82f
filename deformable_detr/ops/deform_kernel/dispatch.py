"""Deformable kernels: a convolution whose taps are read from a larger kernel, the scope."""

import torch
from torch import Tensor

from deformable_detr.ops.deform_kernel import native
from deformable_detr.ops.deform_kernel.interpolation import LinearWeights
from deformable_detr.ops.deform_kernel.products import sum_of_taps
from deformable_detr.ops.deform_kernel.reference import deform_kernel_conv2d_core_pytorch
from deformable_detr.ops.deform_kernel.scope import kernel_coordinates, scope_size_of
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.ops.sampling import sampled_taps


def deform_kernel_conv2d(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    clip_to_scope: bool = True,
) -> Tensor:
    """Compute a depthwise convolution with a different kernel at every position.

    This is the local mode of the Deformable Kernels paper.

        out[n, c, y, x] = sum over taps a, b of
            features[n, c, y * stride - padding + a * dilation, x * ... + b * dilation]
            * bilinear(weight[c, 0], u, v)
        u = a + (S_h - k_h) / 2 + rotation row of (c % R, a, b)
        v = b + (S_w - k_w) / 2 + rotation column of (c % R, a, b)

    Features outside the map and kernel values outside the scope are zero. Gradients are exact;
    at integer coordinates, where the interpolation has a kink, they are the derivatives from
    above.

    Args:
        x: (N, C, H, W) features.
        weight: (C, 1, S_h, S_w) kernel values, the scope, at least as large as the kernel.
        rotation: (N, R * k_h * k_w * 2, H_out, W_out) offsets in cells of the scope, (row, column)
            innermost, then taps row by row; R divides C, and channel c belongs to group c % R.
        image_offsets: (N, k_h * k_w * 2, H_out, W_out) offsets in cells of the map, (row, column)
            innermost, for all channels: features are sampled there, bilinearly. None means zero.
            A tap whose rotation or offset is NaN contributes zero, like one far outside.
        geometry: geometry of the convolution.
        clip_to_scope: keep u in [0, S_h - 1] and v in [0, S_w - 1].

    Returns:
        (N, C, H_out, W_out) in the dtype of x.

    Raises:
        ValueError: shapes disagree.
    """
    _check(x, weight, rotation, image_offsets, geometry)
    compute_dtype = torch.promote_types(x.dtype, weight.dtype)
    compute_dtype = torch.promote_types(compute_dtype, torch.float32)
    values, scope, turns = (tensor.to(compute_dtype) for tensor in (x, weight, rotation))
    offsets = None if image_offsets is None else image_offsets.to(compute_dtype)
    # An exported graph can only contain plain operators, unlike both fast paths.
    is_plain = torch.compiler.is_exporting()
    if not is_plain and offsets is None and native.can_serve(x.device, compute_dtype):
        return native.deform_kernel_conv2d(values, scope, turns, geometry, clip_to_scope).to(
            x.dtype
        )
    compute = deform_kernel_conv2d_core_pytorch if is_plain else deform_kernel_conv2d_by_products
    output = compute(values, scope, turns, offsets, geometry=geometry, clip_to_scope=clip_to_scope)
    return output.to(x.dtype)


def deform_kernel_conv2d_by_products(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    clip_to_scope: bool = True,
) -> Tensor:
    """Compute `deform_kernel_conv2d` without the compiled operator, or with image offsets."""
    scope = scope_size_of(weight)
    rows, columns = kernel_coordinates(rotation, scope, geometry, clip_to_scope=clip_to_scope)
    interpolation = (LinearWeights.apply(rows, scope[0]), LinearWeights.apply(columns, scope[1]))
    if image_offsets is None:
        return sum_of_taps(x, weight.flatten(1), *interpolation, geometry)
    return sum_of_taps(
        sampled_taps(x, image_offsets, geometry), weight.flatten(1), *interpolation, None
    )


def _check(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None,
    geometry: ConvGeometry,
) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must have shape (N, C, H, W), got {tuple(x.shape)}")
    N, C = x.shape[:2]
    k_h, k_w = geometry.kernel_size
    if weight.ndim != 4 or weight.shape[:2] != (C, 1):
        raise ValueError(
            f"weight must have shape ({C}, 1, S_h, S_w), got {tuple(weight.shape)}; "
            "deformable kernels are depthwise"
        )
    if weight.shape[2] < k_h or weight.shape[3] < k_w:
        raise ValueError(
            f"the scope must be at least as large as the kernel, got {scope_size_of(weight)} "
            f"and {geometry.kernel_size}"
        )
    size = geometry.output_size((x.shape[2], x.shape[3]))
    if min(size) < 1:
        raise ValueError(
            "the padded map must be at least as large as the dilated kernel, "
            f"got {tuple(x.shape[2:])} with {geometry}"
        )
    per_group = k_h * k_w * 2
    R = rotation.shape[1] // per_group if rotation.ndim == 4 else 0
    if R < 1 or C % R or rotation.shape != (N, R * per_group, *size):
        raise ValueError(
            f"rotation must have shape ({N}, R * {per_group}, {size[0]}, {size[1]}) "
            f"with R a divisor of {C}, got {tuple(rotation.shape)}"
        )
    expected = (N, per_group, *size)
    if image_offsets is not None and image_offsets.shape != expected:
        raise ValueError(
            f"image_offsets must have shape {expected}, got {tuple(image_offsets.shape)}"
        )
