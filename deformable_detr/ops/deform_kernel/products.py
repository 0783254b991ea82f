"""Sum over a convolution's taps of features times kernel values that depend on the position."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deformable_detr.ops.geometry import ConvGeometry

# Number of products of kernel values and features in memory at once: small enough for the second
# level cache of a CPU, and large enough for few launches on a GPU.
_CPU_CHUNK_ELEMENTS = 2**19
_GPU_CHUNK_ELEMENTS = 2**26


def sum_of_taps(
    x: Tensor,
    weight: Tensor,
    row_weights: Tensor,
    column_weights: Tensor,
    geometry: ConvGeometry | None,
) -> Tensor:
    """Sum features times bilinearly read kernel values over taps, without a loop over taps.

    Args:
        x: (N, C, H, W) features, or (N, C, k_h, k_w, H_out, W_out) taps without a geometry.
        weight: (C, S_h * S_w) kernel values of the scope.
        row_weights: (N, R, S_h, k_h * k_w, H_out, W_out) interpolation weight of every row of the
            scope in a tap's kernel value; channel c uses those of group c % R.
        column_weights: (N, R, S_w, k_h * k_w, H_out, W_out), the same for every column.
        geometry: geometry of the convolution, or None if `x` has the taps.

    Returns:
        (N, C, H_out, W_out).
    """
    output: Tensor = _SumOfTaps.apply(x, weight, row_weights, column_weights, geometry)
    return output


class _SumOfTaps(torch.autograd.Function):
    """`sum_of_taps`, without all products in memory at once.

    With A[(i, j), (tap, position)] the product of the interpolation weights, the kernel values of
    a few channels are one matrix product, weight @ A, and so are the gradients of weight and A
    from Y = grad_output * features: Y @ A^T and weight^T @ Y. Only the inputs are saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        row_weights: Tensor,
        column_weights: Tensor,
        geometry: ConvGeometry | None,
    ) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight, row_weights, column_weights)
        taps = x if geometry is None else _tap_view(x, geometry)
        output = x.new_empty(*taps.shape[:2], *taps.shape[4:])
        scratch = _scratch(taps)
        with torch.autocast(x.device.type, enabled=False):
            for n, r, R in _groups(row_weights):
                coefficients = _coefficients(row_weights[n, r], column_weights[n, r])
                for channels, products in _chunks(scratch, r, R, len(weight)):
                    torch.mm(weight[channels], coefficients, out=products.flatten(1))
                    products.mul_(taps[n, channels])
                    output[n, channels] = products.flatten(1, 2).sum(1)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, row_weights, column_weights = ctx.saved_tensors
        geometry = ctx.geometry
        taps = x if geometry is None else _tap_view(x, geometry)
        scratch = _scratch(taps)
        grad_x = torch.empty_like(x)
        fold = _CopyTaps(grad_x) if geometry is None else _FoldTaps(grad_x, scratch, geometry)
        grad_weight = torch.zeros_like(weight)
        grad_interpolation = (torch.empty_like(row_weights), torch.empty_like(column_weights))
        with torch.autocast(x.device.type, enabled=False):
            for n, r, R in _groups(row_weights):
                coefficients = _coefficients(row_weights[n, r], column_weights[n, r])
                grad_coefficients = torch.empty_like(coefficients)
                for channels, products in _chunks(scratch, r, R, len(weight)):
                    values, grad = weight[channels], grad_output[n, channels, None, None]
                    matrix = products.flatten(1)
                    torch.mul(taps[n, channels], grad, out=products)
                    grad_weight[channels].addmm_(matrix, coefficients.mT)
                    is_first = channels.start == r
                    grad_coefficients.addmm_(values.mT, matrix, beta=0 if is_first else 1)
                    torch.mm(values, coefficients, out=matrix)
                    fold(n, channels, products, grad)
                interpolation = (row_weights, column_weights)
                _split_gradient(grad_coefficients, n, r, interpolation, grad_interpolation)
        return grad_x, grad_weight, *grad_interpolation, None


class _CopyTaps:
    """Gradient of features that are given as taps."""

    def __init__(self, grad_x: Tensor) -> None:
        self.grad_x = grad_x

    def __call__(self, n: int, channels: slice, values: Tensor, grad: Tensor) -> None:
        self.grad_x[n, channels] = values.mul_(grad)


class _FoldTaps:
    """Gradient of features: every cell sums the gradients of all taps on it.

    The products are written into a field of zeros as large as the padded map plus the reach of
    the kernel. There, the products of one cell form a regular lattice, summed by one strided view.
    """

    def __init__(self, grad_x: Tensor, scratch: Tensor, geometry: ConvGeometry) -> None:
        (H, W), (height, width) = grad_x.shape[2:], scratch.shape[3:]
        k_h, k_w = geometry.kernel_size
        (reach_h, reach_w), (stride_h, stride_w) = geometry.reach, geometry.stride
        field_h = H + 2 * geometry.padding[0] + reach_h
        field_w = W + 2 * geometry.padding[1] + reach_w
        field = scratch.new_zeros(len(scratch), k_h, k_w, field_h, field_w)
        self.grad_x = grad_x
        self.row = field_w
        self.products = field[:, :, :, reach_h::stride_h, reach_w::stride_w]
        self.products = self.products[:, :, :, :height, :width]
        channel, row_tap, column_tap, row, _ = field.stride()
        # A step to the next tap is a step back by the dilation, so that the cell stays the same.
        strides = (
            channel,
            row_tap - geometry.dilation[0] * row if k_h > 1 else 0,
            column_tap - geometry.dilation[1] if k_w > 1 else 0,
            1,
        )
        start = (geometry.padding[0] + reach_h) * row + geometry.padding[1] + reach_w
        # All rows in one run, including the columns between them, which are dropped afterwards.
        self.lattice = field.as_strided((len(scratch), k_h, k_w, (H - 1) * row + W), strides, start)

    def __call__(self, n: int, channels: slice, values: Tensor, grad: Tensor) -> None:
        torch.mul(values, grad, out=self.products[: len(values)])
        # Axis by axis, which is an order of magnitude faster than both axes at once.
        sums = self.lattice[: len(values)].sum(2).sum(1)
        (_, length), (H, W) = sums.shape, self.grad_x.shape[2:]
        self.grad_x[n, channels] = sums.as_strided((len(values), H, W), (length, self.row, 1))


def _tap_view(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """Return an (N, C, k_h, k_w, H_out, W_out) overlapping view of the padded features."""
    (padding_h, padding_w), (dilation_h, dilation_w) = geometry.padding, geometry.dilation
    size = geometry.output_size((x.shape[2], x.shape[3]))
    x = F.pad(x, (padding_w, padding_w, padding_h, padding_h)).contiguous()
    image, channel, row, column = x.stride()
    return x.as_strided(
        (*x.shape[:2], *geometry.kernel_size, *size),
        (
            image,
            channel,
            dilation_h * row,
            dilation_w * column,
            geometry.stride[0] * row,
            geometry.stride[1] * column,
        ),
    )


def _scratch(taps: Tensor) -> Tensor:
    """Allocate (channels of a chunk, k_h, k_w, H_out, W_out) uninitialized for products."""
    elements = _CPU_CHUNK_ELEMENTS if taps.device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    channels = max(1, elements // max(1, math.prod(taps.shape[2:])))
    return taps.new_empty(min(channels, taps.shape[1]), *taps.shape[2:])


def _groups(row_weights: Tensor) -> Iterator[tuple[int, int, int]]:
    """Iterate over images n and rotation groups r, with the number R of groups."""
    N, R = row_weights.shape[:2]
    return ((n, r, R) for n in range(N) for r in range(R))


def _chunks(scratch: Tensor, r: int, R: int, num_channels: int) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over the channels c % R = r in chunks, each with its part of the scratch."""
    for start in range(r, num_channels, R * len(scratch)):
        channels = slice(start, min(start + R * len(scratch), num_channels), R)
        yield channels, scratch[: len(range(num_channels)[channels])]


def _coefficients(row_weights: Tensor, column_weights: Tensor) -> Tensor:
    """Multiply (S_h, K, ...) and (S_w, K, ...) weights to (S_h * S_w, K * positions)."""
    return (row_weights[:, None] * column_weights).flatten(2).flatten(0, 1)


def _split_gradient(
    grad_coefficients: Tensor,
    n: int,
    r: int,
    interpolation: tuple[Tensor, Tensor],
    grad_interpolation: tuple[Tensor, Tensor],
) -> None:
    rows, columns = interpolation[0][n, r], interpolation[1][n, r]
    grad = grad_coefficients.view(len(rows), *columns.shape)
    grad_interpolation[0][n, r] = (grad * columns).sum(1)
    grad_interpolation[1][n, r] = (grad * rows[:, None]).sum(0)
