"""Deformable kernels in plain PyTorch: the reference for the fast paths."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.ops.deform_kernel.interpolation import linear_weights
from deformable_detr.ops.deform_kernel.scope import kernel_coordinates, scope_size_of
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.ops.sampling import finite_offsets


def deform_kernel_conv2d_core_pytorch(
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    image_offsets: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    clip_to_scope: bool = True,
) -> Tensor:
    """Compute `deform_kernel_conv2d`, one tap after another, for readability."""
    N, C = x.shape[:2]
    scope = scope_size_of(weight)
    rows, columns = kernel_coordinates(rotation, scope, geometry, clip_to_scope=clip_to_scope)
    R, num_taps = rows.shape[1:3]
    values = weight.reshape(C // R, R, *scope)  # channel c is [c // R, c % R]
    output = x.new_zeros(())
    for tap in range(num_taps):
        row_weights = linear_weights(rows[:, :, tap], scope[0])  # (N, R, S_h, H_out, W_out)
        column_weights = linear_weights(columns[:, :, tap], scope[1])
        coefficients = row_weights[:, :, :, None] * column_weights[:, :, None]
        kernel_values = torch.einsum("grij,nrijyx->ngryx", values, coefficients)
        features = _features_of_tap(x, tap, image_offsets, geometry)
        output = output + features * kernel_values.reshape(N, C, *rows.shape[3:])
    return output


def _features_of_tap(
    x: Tensor, tap: int, image_offsets: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """Return the (N, C, H_out, W_out) features under one tap, zero outside the map."""
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
    """Return the (N, C, h, w) cells of x at (N, h, w) integer positions, zero outside the map."""
    N, C, H, W = x.shape
    is_inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    index = rows.clamp(0, H - 1) * W + columns.clamp(0, W - 1)
    index = index[:, None].expand(N, C, -1, -1)
    cells = x.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    return cells * is_inside[:, None]
