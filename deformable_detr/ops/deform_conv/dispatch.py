"""Deformable convolution: the operator, its plain PyTorch twin, and layouts of offsets.

Letters: N images, C input and O output channels, K = k_h * k_w taps, row by row, G offset groups.
"""

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor

from deformable_detr.ops.deform_kernel.products import ConvGeometry, sampled_taps

IntPair = int | tuple[int, int]  # for both axes, or (vertical, horizontal)
# Pixels; outside every map. An offset that is not a number crashes torchvision's CPU kernel.
_OUTSIDE = 1e6


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = (1, 1),
    padding: IntPair = (0, 0),
    dilation: IntPair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve with taps that are moved by offsets (Deformable ConvNets v1; v2 with a mask).

        out[n, o, i, j] = bias[o] + sum over c and t of weight[o, c, t] * mask[n, q, t, i, j]
                          * bilinear(input[n, c], y[n, q, t, i, j], x[n, q, t, i, j])
        y = i * stride - padding + row of tap t * dilation + offset[n, q, t, 0, i, j]

    and x alike; q is the offset group of channel c, of which each has C / G neighbouring ones.
    Samples are bilinear between the centres of pixels, which lie at integers, and zero beyond a
    map, as in the authors' second operator. A sample with an infinite or NaN offset is zero and
    has no gradient.

    The signature is that of `torchvision.ops.deform_conv2d`, which computes it on GPUs and in
    exported graphs; here the input may be of low precision on every device, and errors name the
    argument. The backward pass on CUDA is not deterministic. On CPUs it is computed by
    `grid_sample` and matrix products, several times faster in training, where the samples of all
    taps, K times the input, are kept for the backward pass.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * G * K, H_out, W_out) in pixels of the input: groups one after another,
            in a group tap after tap, for each y, then x.
        weight: (O, C / groups, k_h, k_w).
        bias: (O,) or None.
        stride: pixels from one output to the next.
        padding: pixels by which the first output lies outside.
        dilation: pixels from one tap to the next.
        mask: (N, G * K, H_out, W_out) weights of the samples, or None for ones.

    Returns:
        (N, O, H_out, W_out) in the dtype of `input`, computed in float32 or wider.

    Raises:
        ValueError: shapes disagree.
    """
    geometry = _Geometry.of(input, offset, weight, stride, padding, dilation, mask)
    dtype = _compute_dtype(input, offset)
    # An exported graph holds the one operator, to which ONNX has an equal.
    by_products = input.device.type == "cpu" and not torch.compiler.is_exporting()
    compute = _by_products if by_products else _by_torchvision
    output = compute(
        input.to(dtype),
        offset.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        None if mask is None else mask.to(dtype),
        geometry,
    )
    return output.to(input.dtype)


def _by_torchvision(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: "_Geometry",
) -> Tensor:
    offset = offset.nan_to_num(nan=_OUTSIDE, posinf=_OUTSIDE, neginf=-_OUTSIDE)
    window = (geometry.stride, geometry.padding, geometry.dilation)
    output: Tensor = torchvision.ops.deform_conv2d(input, offset, weight, bias, *window, mask)
    return output


def _by_products(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: "_Geometry",
) -> Tensor:
    """All samples of all taps, then one product a group of the weight."""
    N, C, *size = input.shape
    G, places = geometry.offset_groups, offset.shape[2:]
    num_outputs, channels, *kernel_size = weight.shape
    groups = C // channels
    window = ConvGeometry(
        geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation
    )
    with torch.autocast(input.device.type, enabled=False):
        # Each offset group as an image of its own.
        offset = offset.reshape(N * G, offset.shape[1] // G, *places)
        samples = sampled_taps(input.reshape(N * G, C // G, *size), offset, window)
        if mask is not None:
            samples = samples * mask.reshape(N * G, 1, *kernel_size, *places)
        columns = samples.reshape(N, groups, weight[0].numel(), places.numel())
        kernels = weight.reshape(groups, num_outputs // groups, weight[0].numel())
        # A product of a single row is slow as such.
        is_single = num_outputs == groups
        output = (columns * kernels.mT).sum(2) if is_single else kernels @ columns
        output = output.reshape(N, num_outputs, *places)
        return output if bias is None else output + bias[:, None, None]


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
    """See `deform_conv2d`."""
    geometry = _Geometry.of(input, offset, weight, stride, padding, dilation, mask)
    dtype = _compute_dtype(input, offset)
    groups = input.shape[1] // weight.shape[1]
    with torch.autocast(input.device.type, enabled=False):
        y, x = _positions(offset.to(dtype), geometry)
        maps = input.to(dtype).unflatten(1, (geometry.offset_groups, -1))
        samples = _bilinear(maps, y, x)  # (N, G, C / G, K, H_out, W_out)
        if mask is not None:
            samples = samples * mask.to(dtype).unflatten(1, (geometry.offset_groups, 1, -1))
        samples = samples.flatten(1, 2).unflatten(1, (groups, -1))
        kernels = weight.to(dtype).unflatten(0, (groups, -1)).flatten(3)
        output = torch.einsum("ngckyx,gock->ngoyx", samples, kernels).flatten(1, 2)
        if bias is not None:
            output = output + bias.to(dtype)[:, None, None]
    return output.to(input.dtype)


def offsets_from_block_layout(offset: Tensor, *, dim: int = 1) -> Tensor:
    """From all rows, then all columns, to a row and a column for each tap.

    Some implementations keep the K vertical offsets together before the K horizontal ones.
    With `dim=0` the weight or the bias of the convolution that makes them is converted.

    Args:
        offset: 2 * K entries along `dim`, of one offset group.
        dim: where the entries are.

    Returns:
        A tensor of the same shape, its entries in the order of `deform_conv2d`.

    Raises:
        ValueError: the number of entries is odd.
    """
    if offset.shape[dim] % 2:
        raise ValueError(
            f"offset must have an even number of entries along dim {dim}, "
            f"got shape {tuple(offset.shape)}"
        )
    rows, columns = offset.movedim(dim, 0).chunk(2)
    return torch.stack((rows, columns), dim=1).flatten(0, 1).movedim(0, dim)


@dataclass(frozen=True)
class _Geometry:
    """Where the taps are before they are moved; pairs are (vertical, horizontal)."""

    offset_groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(
        cls,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        stride: IntPair,
        padding: IntPair,
        dilation: IntPair,
        mask: Tensor | None,
    ) -> "_Geometry":
        """The geometry of a call whose shapes agree."""
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
        geometry = cls(offset_groups, (k_h, k_w), pair(stride), pair(padding), pair(dilation))
        places = geometry.output_size((input.shape[2], input.shape[3]))
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

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the output for an input's."""
        height, width = (
            (extent + 2 * padding - (dilation * (taps - 1) + 1)) // stride + 1
            for extent, taps, stride, padding, dilation in zip(
                size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if min(height, width) < 1:
            raise ValueError(
                f"input must be as large as the kernel {self.kernel_size} of dilation "
                f"{self.dilation}, got {size} with padding {self.padding}"
            )
        return height, width


def pair(value: IntPair) -> tuple[int, int]:
    """The same number for both axes, or the pair itself."""
    return (value, value) if isinstance(value, int) else value


def _compute_dtype(input: Tensor, offset: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(input.dtype, offset.dtype), torch.float32)


def _positions(offset: Tensor, geometry: _Geometry) -> tuple[Tensor, Tensor]:
    """Row and column of every sample, in pixels: (N, G, K, H_out, W_out) each."""
    k_h, k_w = geometry.kernel_size
    moved = offset.unflatten(1, (geometry.offset_groups, k_h, k_w, 2))
    positions = []
    # Of (N, G, k_h, k_w, H_out, W_out), the taps and the outputs along each axis.
    for axis, tap_dim, output_dim in ((0, 2, 4), (1, 3, 5)):
        values = moved.select(4, axis)
        taps = torch.arange(values.shape[tap_dim], device=offset.device)
        outputs = torch.arange(values.shape[output_dim], device=offset.device)
        taps = taps * geometry.dilation[axis] - geometry.padding[axis]
        outputs = outputs * geometry.stride[axis]
        start = taps.view([-1 if dim == tap_dim else 1 for dim in range(6)])
        start = start + outputs.view([-1 if dim == output_dim else 1 for dim in range(6)])
        positions.append((start + values).flatten(2, 3))
    return positions[0], positions[1]


def _bilinear(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample (N, G, C / G, H, W) maps at (N, G, K, H_out, W_out) rows and columns."""
    H, W = maps.shape[3:]
    # The clamp moves no sample that counts; it keeps infinite and NaN ones outside.
    y = y.nan_to_num(nan=_OUTSIDE).clamp(-2, H + 1)
    x = x.nan_to_num(nan=_OUTSIDE).clamp(-2, W + 1)
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
