"""Deformable convolution: the operator, its fast paths, and layouts of offsets.

Letters: N images, C input and O output channels, K = k_h * k_w taps, row by row, G offset groups.
"""

import torch
import torchvision
from torch import Tensor

from deformable_detr.ops.deform_conv.arguments import checked_geometry, compute_dtype
from deformable_detr.ops.geometry import ConvGeometry, IntPair
from deformable_detr.ops.sampling import finite_offsets, sampled_taps


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

    and x alike; q is the offset group of channel c, of which each has C / G neighboring ones.
    Samples are bilinear between the centers of pixels, which lie at integers, and zero beyond a
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
    geometry = checked_geometry(input, offset, weight, stride, padding, dilation, mask)
    dtype = compute_dtype(input, offset)
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
    geometry: ConvGeometry,
) -> Tensor:
    offset = finite_offsets(offset)  # NaN crashes torchvision's CPU kernel
    steps = geometry[1:]
    output: Tensor = torchvision.ops.deform_conv2d(input, offset, weight, bias, *steps, mask)
    return output


def _by_products(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: ConvGeometry,
) -> Tensor:
    """All samples of all taps, then one product a group of the weight."""
    N, C, *size = input.shape
    num_outputs, channels, k_h, k_w = weight.shape
    G, places = offset.shape[1] // (2 * k_h * k_w), offset.shape[2:]
    groups = C // channels
    with torch.autocast(input.device.type, enabled=False):
        # Each offset group as an image of its own.
        offset = offset.reshape(N * G, offset.shape[1] // G, *places)
        samples = sampled_taps(input.reshape(N * G, C // G, *size), offset, geometry)
        if mask is not None:
            samples = samples * mask.reshape(N * G, 1, k_h, k_w, *places)
        columns = samples.reshape(N, groups, weight[0].numel(), places.numel())
        kernels = weight.reshape(groups, num_outputs // groups, weight[0].numel())
        # matmul with one row is slow; multiply and sum instead.
        is_single = num_outputs == groups
        output = (columns * kernels.mT).sum(2) if is_single else kernels @ columns
        output = output.reshape(N, num_outputs, *places)
        return output if bias is None else output + bias[:, None, None]


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
