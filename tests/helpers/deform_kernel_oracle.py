"""Deformable kernels with plain loops in float64."""

import math

import torch


def bilinear(field, row, column):
    """Read a 2-D array at fractional (row, column), zero outside."""
    low_row, low_column = math.floor(row), math.floor(column)
    total = 0.0
    for i in (low_row, low_row + 1):
        for j in (low_column, low_column + 1):
            if 0 <= i < len(field) and 0 <= j < len(field[0]):
                total += field[i][j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def deform_kernel_by_loops(x, weight, rotation, image_offsets, *, geometry, clip_to_scope):
    N, C = x.shape[:2]
    scope = weight.shape[2:]
    k_h, k_w = geometry.kernel_size
    R = rotation.shape[1] // (2 * k_h * k_w)
    height, width = rotation.shape[2:]
    output = torch.zeros(N, C, height, width, dtype=torch.float64)
    features, values = x.tolist(), weight.tolist()
    for n, c, y, z, a, b in torch.cartesian_prod(
        *map(torch.arange, (N, C, height, width, k_h, k_w))
    ).tolist():
        tap = 2 * (a * k_w + b)
        dr, dc = rotation[n, (c % R) * 2 * k_h * k_w + tap :, y, z][:2].tolist()
        u = a + dr + (scope[0] - k_h) / 2
        v = b + dc + (scope[1] - k_w) / 2
        if clip_to_scope:
            u, v = min(max(u, 0), scope[0] - 1), min(max(v, 0), scope[1] - 1)
        row = y * geometry.stride[0] - geometry.padding[0] + a * geometry.dilation[0]
        column = z * geometry.stride[1] - geometry.padding[1] + b * geometry.dilation[1]
        if image_offsets is not None:
            row += image_offsets[n, tap, y, z].item()
            column += image_offsets[n, tap + 1, y, z].item()
        output[n, c, y, z] += bilinear(features[n][c], row, column) * bilinear(values[c][0], u, v)
    return output


def random_call(
    geometry,
    *,
    channels=4,
    groups=1,
    scope=(4, 4),
    size=(6, 7),
    batch=2,
    image_offsets=False,
    spread=1.0,
    dtype=torch.float64,
    seed=0,
):
    """Return random tensors for `deform_kernel_conv2d`, all of which require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    num_taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    output = geometry.output_size(size)
    shapes = [
        (batch, channels, *size),
        (channels, 1, *scope),
        (batch, groups * num_taps * 2, *output),
    ]
    if image_offsets:
        shapes.append((batch, num_taps * 2, *output))
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    for offsets in tensors[2:]:
        offsets *= spread
    return [tensor.requires_grad_() for tensor in tensors]


def gradients(function, tensors, **options):
    """Return the output of a call, and all gradients for a random gradient of the output."""
    output = function(*tensors, **options)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return output, torch.autograd.grad(output, tensors, grad)
