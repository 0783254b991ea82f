"""Deformable kernels: a convolution whose taps are read from a larger kernel, the scope.

The fast paths and, beside them, the plain reference that they are tested against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.ops.deform_kernel import native as native
from deformable_detr.ops.deform_kernel.interpolation import Tent, tent
from deformable_detr.ops.deform_kernel.products import (
    ConvGeometry,
    Pair,
    finite_offsets,
    sampled_taps,
    sum_of_taps,
)


def deform_kernel_conv2d(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    clip_to_scope: bool = True,
) -> Tensor:
    """Depthwise convolution with a kernel of its own at every position (DK paper, local mode).

        out[n, c, y, x] = sum over taps a, b of
            features[n, c, y * stride - padding + a * dilation, x * ... + b * dilation]
            * bilinear(weight[c, 0], u, v)
        u = a + (S_h - k_h) / 2 + rotation row of (c % R, a, b)
        v = b + (S_w - k_w) / 2 + rotation column of (c % R, a, b)

    Features outside the map and kernel values outside the scope are zero. Gradients are exact;
    at integer coordinates, where the interpolation has a kink, they are those from above.

    Args:
        x: (N, C, H, W) features.
        weight: (C, 1, S_h, S_w) kernel values, the scope, at least as large as the kernel.
        rotation: (N, R * k_h * k_w * 2, H_out, W_out) offsets in cells of the scope, (row, column)
            innermost, then taps row by row; R divides C, and channel c belongs to group c % R.
        image_offsets: (N, k_h * k_w * 2, H_out, W_out) offsets in cells of the map, (row, column)
            innermost, for all channels: features are sampled there, bilinearly. None is zero.
            A tap whose rotation or offset is NaN reads nothing, as one far outside.
        geometry: of the convolution.
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
    # An exported graph holds plain operators, to which neither fast path translates.
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
    """See `deform_kernel_conv2d`; where there is no compiled operator, or with image offsets."""
    scope = _scope_size(weight)
    rows, columns = kernel_coordinates(rotation, scope, geometry, clip_to_scope=clip_to_scope)
    tents = (Tent.apply(rows, scope[0]), Tent.apply(columns, scope[1]))
    if image_offsets is None:
        return sum_of_taps(x, weight.flatten(1), *tents, geometry)
    return sum_of_taps(sampled_taps(x, image_offsets, geometry), weight.flatten(1), *tents, None)


def deform_kernel_conv2d_core_pytorch(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    clip_to_scope: bool = True,
) -> Tensor:
    """See `deform_kernel_conv2d`; one tap after another, written to be read."""
    N, C = x.shape[:2]
    scope = _scope_size(weight)
    rows, columns = kernel_coordinates(rotation, scope, geometry, clip_to_scope=clip_to_scope)
    R, num_taps = rows.shape[1:3]
    values = weight.reshape(C // R, R, *scope)  # channel c is [c // R, c % R]
    output = x.new_zeros(())
    for tap in range(num_taps):
        row_tents = tent(rows[:, :, tap], scope[0])  # (N, R, S_h, H_out, W_out)
        column_tents = tent(columns[:, :, tap], scope[1])
        coefficients = row_tents[:, :, :, None] * column_tents[:, :, None]
        kernel_values = torch.einsum("grij,nrijyx->ngryx", values, coefficients)
        features = _features_of_tap(x, tap, image_offsets, geometry)
        output = output + features * kernel_values.reshape(N, C, *rows.shape[3:])
    return output


def kernel_coordinates(
    rotation: Tensor, scope_size: Pair, geometry: ConvGeometry, *, clip_to_scope: bool
) -> tuple[Tensor, Tensor]:
    """Where in the scope every tap is read.

    Args:
        rotation: (N, R * k_h * k_w * 2, ...) as `deform_kernel_conv2d` has it.
        scope_size: (S_h, S_w).
        geometry: its kernel size counts.
        clip_to_scope: keep the coordinates in [0, S - 1].

    Returns:
        Rows and columns, (N, R, k_h * k_w, ...) each; the first cell's centre is 0.
    """
    k_h, k_w = geometry.kernel_size
    offsets = rotation.unflatten(1, (-1, k_h * k_w, 2))
    taps = torch.arange(k_h * k_w, device=rotation.device)
    coordinates = []
    for axis, tap_index in enumerate((taps // k_w, taps % k_w)):
        start = (scope_size[axis] - geometry.kernel_size[axis]) / 2
        base = tap_index.to(rotation.dtype) + start
        base = base.view(-1, *[1] * (rotation.ndim - 2))
        coordinate = offsets[:, :, :, axis] + base
        coordinates.append(_clip(coordinate, scope_size[axis]) if clip_to_scope else coordinate)
    return coordinates[0], coordinates[1]


def _clip(coordinates: Tensor, size: int) -> Tensor:
    """Clamp to [0, size - 1]; a tap on the edge keeps its gradient, to find its way back."""
    clipped = coordinates.detach().clamp(0, size - 1)
    is_free = (coordinates == clipped) & (size > 1)
    return torch.where(is_free, coordinates, clipped)


def sample_scope(
    weight: Tensor, rotation: Tensor, kernel_size: Pair, *, clip_to_scope: bool = True
) -> Tensor:
    """Read one kernel an image from the scope (DK paper, global mode).

    Args:
        weight: (C, 1, S_h, S_w) kernel values.
        rotation: (N, R * k_h * k_w * 2) offsets as `deform_kernel_conv2d` has them.
        kernel_size: (k_h, k_w).
        clip_to_scope: keep the coordinates in [0, S - 1].

    Returns:
        (N, C, k_h, k_w) kernels.
    """
    C = weight.shape[0]
    scope = _scope_size(weight)
    rows, columns = kernel_coordinates(
        rotation, scope, ConvGeometry(kernel_size), clip_to_scope=clip_to_scope
    )
    N, R, _ = rows.shape
    coefficients = tent(rows, scope[0])[:, :, :, None] * tent(columns, scope[1])[:, :, None]
    kernels = torch.einsum("grij,nrijt->ngrt", weight.reshape(C // R, R, *scope), coefficients)
    return kernels.reshape(N, C, *kernel_size)


def _scope_size(weight: Tensor) -> Pair:
    return weight.shape[2], weight.shape[3]


def _features_of_tap(
    x: Tensor, tap: int, image_offsets: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """(N, C, H_out, W_out) features under one tap, zero outside the map."""
    row_tap, column_tap = divmod(tap, geometry.kernel_size[1])
    height, width = geometry.output_size((x.shape[2], x.shape[3]))
    if image_offsets is None:
        padding_h, padding_w = geometry.padding
        padded = F.pad(x, (padding_w, padding_w, padding_h, padding_h))
        from_tap = padded[
            :, :, row_tap * geometry.dilation[0] :, column_tap * geometry.dilation[1] :
        ]
        return from_tap[:, :, :: geometry.stride[0], :: geometry.stride[1]][..., :height, :width]
    image_offsets = finite_offsets(image_offsets)
    rows = geometry.tap_cells(0, height, x.device)[row_tap]
    columns = geometry.tap_cells(1, width, x.device)[column_tap]
    row = rows[:, None] + image_offsets[:, 2 * tap]  # (N, H_out, W_out)
    column = columns + image_offsets[:, 2 * tap + 1]
    low_row, low_column = row.detach().floor(), column.detach().floor()
    features = x.new_zeros(())
    for corner_row, corner_column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row_share = row - low_row if corner_row else 1 - (row - low_row)
        column_share = column - low_column if corner_column else 1 - (column - low_column)
        corner = _cells(x, low_row.long() + corner_row, low_column.long() + corner_column)
        features = features + corner * (row_share * column_share)[:, None]
    return features


def _cells(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, C, h, w): the cells of x at (N, h, w) integer positions, zero outside the map."""
    N, C, H, W = x.shape
    is_inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    index = rows.clamp(0, H - 1) * W + columns.clamp(0, W - 1)
    index = index[:, None].expand(N, C, -1, -1)
    cells = x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    return cells * is_inside[:, None]


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
            f"the scope must be at least as large as the kernel, got {_scope_size(weight)} "
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
