"""Kernel algebra: branches of convolutions, norms and pools as one convolution.

The six transforms are those of the Diverse Branch Block paper (CVPR 2021), section 3.2. All are
differentiable and compute in the dtype of their inputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deformable_detr.layers.norm import (
    Norm,
    scale_and_shift,
)


class Kernel(NamedTuple):
    """Weight and bias of a convolution of any stride, padding and groups G.

    Attributes:
        weight: (C_out, C_in / G, height, width).
        bias: (C_out,).
    """

    weight: Tensor
    bias: Tensor


def without_bias(weight: Tensor) -> Kernel:
    """Return the kernel of a convolution without a bias."""
    return Kernel(weight, weight.new_zeros(weight.shape[0]))


def kernel_of(conv: nn.Conv2d) -> Kernel:
    """Return the kernel of a plain convolution; a missing bias is zero."""
    return without_bias(conv.weight) if conv.bias is None else Kernel(conv.weight, conv.bias)


def fuse_conv_norm(kernel: Kernel, norm: Norm) -> Kernel:
    """Fuse a convolution and the norm after it, with stored statistics (transform 1)."""
    weight, bias = kernel
    scale, shift = scale_and_shift(norm)
    return Kernel(weight * scale[:, None, None, None], bias * scale + shift)


def add_branches(*kernels: Kernel) -> Kernel:
    """Add convolutions of the same geometry (transform 2).

    Raises:
        ValueError: the shapes of the weights differ.
    """
    shapes = [tuple(weight.shape) for weight, _ in kernels]
    if len(set(shapes)) != 1:
        raise ValueError(f"kernels must have one shape, got {shapes}; use pad_kernel")
    return Kernel(
        torch.stack([weight for weight, _ in kernels]).sum(0),
        torch.stack([bias for _, bias in kernels]).sum(0),
    )


def chain_1x1_kxk(first: Kernel, second: Kernel, *, groups: int = 1) -> Kernel:
    """Chain a 1x1 convolution and a convolution of any size (transform 3).

    This is exact if the map between them is padded with the bias of the first, which is the
    output of the first for a padding of zeros.

    Args:
        first: 1x1, from C_in to C_mid channels.
        second: from C_mid to C_out channels.
        groups: groups of both convolutions.

    Raises:
        ValueError: the first is not 1x1, or the channels do not match.
    """
    (weight1, bias1), (weight2, bias2) = first, second
    if weight1.shape[2:] != (1, 1) or weight1.shape[0] != weight2.shape[1] * groups:
        raise ValueError(
            f"the first weight must be 1x1 with {weight2.shape[1]} * {groups} output channels, "
            f"got shape {tuple(weight1.shape)}"
        )
    by_group1 = weight1.unflatten(0, (groups, -1))[..., 0, 0]  # (G, C_mid / G, C_in / G)
    by_group2 = weight2.unflatten(0, (groups, -1))  # (G, C_out / G, C_mid / G, height, width)
    weight = torch.einsum("gomhw,gmi->goihw", by_group2, by_group1).flatten(0, 1)
    added = torch.einsum("gomhw,gm->go", by_group2, bias1.view(groups, -1)).flatten()
    return Kernel(weight, bias2 + added)


def concat_branches(*kernels: Kernel) -> Kernel:
    """Concatenate the output channels of convolutions of the same input (transform 4)."""
    return Kernel(
        torch.cat([weight for weight, _ in kernels]), torch.cat([bias for _, bias in kernels])
    )


def average_pool_as_conv(
    channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Kernel:
    """Express average pooling, zeros of the padding included, as a convolution (transform 5).

    Args:
        channels: channels of the input and of the output.
        kernel_size: K; each of the K * K cells has the same weight.
        groups: G of the convolution, which may be any divisor of the channels.
        dtype: dtype of the kernel.
        device: device of the kernel.

    Returns:
        weight (channels, channels / G, K, K) and a bias of zeros.
    """
    weight = torch.zeros(
        channels, channels // groups, kernel_size, kernel_size, dtype=dtype, device=device
    )
    output_channel = torch.arange(channels, device=device)
    weight[output_channel, output_channel % (channels // groups)] = 1 / kernel_size**2
    return without_bias(weight)


def pad_kernel(kernel: Kernel, size: tuple[int, int]) -> Kernel:
    """Pad a kernel with zeros on all sides to (height, width) (transform 6).

    Raises:
        ValueError: the kernel is larger, or cannot be centered in that size.
    """
    weight, bias = kernel
    height, width = size[0] - weight.shape[2], size[1] - weight.shape[3]
    if min(height, width) < 0 or height % 2 or width % 2:
        raise ValueError(f"size must exceed {tuple(weight.shape[2:])} by even numbers, got {size}")
    zeros = (width // 2, width // 2, height // 2, height // 2)
    return Kernel(nn.functional.pad(weight, zeros), bias)
