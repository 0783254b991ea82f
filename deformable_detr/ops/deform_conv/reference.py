"""Deformable convolution in plain PyTorch: the reference for the fast paths."""

import torch
from torch import Tensor

from deformable_detr.ops.deform_conv.arguments import checked_geometry, compute_dtype
from deformable_detr.ops.geometry import IntPair
from deformable_detr.ops.sampling import finite_offsets


def deform_conv2d_core_pytorch(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = (1, 1),
    padding: IntPair = (0, 0),
    dilation: IntPair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Compute `deform_conv2d`."""
    geometry = checked_geometry(input, offset, weight, stride, padding, dilation, mask)
    dtype = compute_dtype(input, offset)
    groups = input.shape[1] // weight.shape[1]
    with torch.autocast(input.device.type, enabled=False):
        offset = finite_offsets(offset.to(dtype)).unflatten(1, (-1, *geometry.kernel_size, 2))
        offset_groups = offset.shape[1]
        y, x = (positions.flatten(2, 3) for positions in geometry.tap_positions(offset))
        maps = input.to(dtype).unflatten(1, (offset_groups, -1))
        samples = _bilinear(maps, y, x)  # (N, G, C / G, K, H_out, W_out)
        if mask is not None:
            samples = samples * mask.to(dtype).unflatten(1, (offset_groups, 1, -1))
        samples = samples.flatten(1, 2).unflatten(1, (groups, -1))
        kernels = weight.to(dtype).unflatten(0, (groups, -1)).flatten(3)
        output = torch.einsum("ngckyx,gock->ngoyx", samples, kernels).flatten(1, 2)
        if bias is not None:
            output = output + bias.to(dtype)[:, None, None]
    return output.to(input.dtype)


def _bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample (N, G, C / G, H, W) maps at (N, G, K, H_out, W_out) rows and columns."""
    H, W = maps.shape[3:]
    y, x = y.clamp(-2, H + 1), x.clamp(-2, W + 1)  # clamped samples are outside: zero either way
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    flat = maps.flatten(3)
    samples = []
    for row, row_share in ((top, 1 - down), (top + 1, down)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            is_inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            index = row.long().clamp(0, H - 1) * W + column.long().clamp(0, W - 1)
            index = index.flatten(2)[:, :, None].expand(-1, -1, maps.shape[2], -1)
            corner = flat.gather(3, index).unflatten(3, y.shape[2:])
            samples.append(corner * (row_share * column_share * is_inside)[:, :, None])
    return torch.stack(samples).sum(0)
