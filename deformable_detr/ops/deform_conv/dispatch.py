"""Deformable convolution: operator, fast paths, and layouts of offsets.

Letters: N images, C input and O output channels, K = k_h * k_w taps, row by row, G offset groups.
"""

import torch
import torchvision
from torch import Tensor

from deformable_detr.ops.checks import checked_operator
from deformable_detr.ops.deform_conv.arguments import checked_geometry, compute_dtype
from deformable_detr.ops.geometry import ConvGeometry, IntPair
from deformable_detr.ops.sampling import finite_offsets, sampled_taps


@checked_operator
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
    """Convolve with taps displaced by offsets (Deformable ConvNets v1; v2 with a mask).

        out[n, o, i, j] = bias[o] + sum over c and t of weight[o, c, t] * mask[n, q, t, i, j]
                          * bilinear(input[n, c], y[n, q, t, i, j], x[n, q, t, i, j])
        y = i * stride - padding + row of tap t * dilation + offset[n, q, t, 0, i, j]

    and x likewise; q is the offset group of channel c; a group has C / G neighboring channels.
    Samples are bilinear between the centers of pixels, which lie at integers, and zero outside
    the map, as in the authors' second operator. A sample with an infinite or NaN offset is zero
    and has no gradient.

    The signature is that of `torchvision.ops.deform_conv2d`, which runs on GPUs and in exported
    graphs; here the input may have low precision on every device, and errors name the argument.
    The backward pass on CUDA is not deterministic. On CPUs the result is computed with
    `grid_sample` and matrix products, which is several times faster in training and stores the
    samples of all taps, K times the input, for the backward pass.

    Args:
        input: (N, C, H, W).
        offset: (N, 2 * G * K, H_out, W_out) in pixels of the input: groups one after another,
            in a group tap after tap, per tap y, then x.
        weight: (O, C / groups, k_h, k_w).
        bias: (O,) or None.
        stride: pixels from one output to the next.
        padding: zeros around the input, in pixels.
        dilation: pixels from one tap to the next.
        mask: (N, G * K, H_out, W_out) weights of the samples, or None for ones.

    Returns:
        (N, O, H_out, W_out) in the dtype of `input`, computed in float32 or wider.

    Raises:
        ValueError: shapes disagree.
    """
    geometry = checked_geometry(input, offset, weight, stride, padding, dilation, mask)
    dtype = compute_dtype(input, offset)
    # An exported graph contains torchvision's operator, which has an equivalent in ONNX.
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
    """Compute the samples of all taps, then one matrix product per group of the weight."""
    N, C, *size = input.shape
    num_outputs, channels, k_h, k_w = weight.shape
    G, places = offset.shape[1] // (2 * k_h * k_w), offset.shape[2:]
    groups = C // channels
    with torch.autocast(input.device.type, enabled=False):
        # Treat each offset group as a separate image.
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
    """Reorder offsets from all rows, then all columns, to a row and a column per tap.

    Some implementations store the K vertical offsets before the K horizontal offsets. With `dim=0`
    the weight or the bias of the convolution that predicts them is converted.

    Args:
        offset: 2 * K entries along `dim`, of one offset group.
        dim: dimension of the entries.

    Returns:
        A tensor of the same shape, with the entries in the order of `deform_conv2d`.

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
