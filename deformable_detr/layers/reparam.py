"""Kernel algebra: branches of convolutions, norms and pools as one convolution.

The six transforms are those of the Diverse Branch Block paper (CVPR 2021), section 3.2. All are
differentiable and work in the dtype of what they are given.
"""

import copy
import itertools
from abc import abstractmethod
from collections import Counter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.folding import FoldingSequential
from deformable_detr.layers.norm import (
    Norm,
    is_affine_norm,
    scale_and_shift,
    uses_batch_statistics,
)

_Model = TypeVar("_Model", bound=nn.Module)
OFFICIAL_NORM_EPS = 1e-5  # of the frozen batch norm of the official Deformable DETR


class Kernel(NamedTuple):
    """What a convolution multiplies by and adds, whatever its stride, padding and groups G.

    Attributes:
        weight: (C_out, C_in / G, height, width).
        bias: (C_out,).
    """

    weight: Tensor
    bias: Tensor


class ReparameterizedBlock(nn.Module):
    """Branches that together are one convolution."""

    @abstractmethod
    def equivalent_kernel(self) -> Kernel:
        """The kernel on the stored statistics; differentiable in every parameter."""

    @abstractmethod
    def fuse(self) -> nn.Conv2d:
        """A new convolution that computes what the block computes in eval mode.

        Raises:
            ValueError: the block would now use the statistics of the batch.
        """


def without_bias(weight: Tensor) -> Kernel:
    """The kernel of a convolution that has no bias."""
    return Kernel(weight, weight.new_zeros(weight.shape[0]))


def kernel_of(conv: nn.Conv2d) -> Kernel:
    """The kernel of a plain convolution, its bias zero where it has none."""
    return without_bias(conv.weight) if conv.bias is None else Kernel(conv.weight, conv.bias)


def fuse_conv_norm(kernel: Kernel, norm: Norm) -> Kernel:
    """Transform 1: a convolution and the norm behind it, on the norm's stored statistics."""
    weight, bias = kernel
    scale, shift = scale_and_shift(norm)
    return Kernel(weight * scale[:, None, None, None], bias * scale + shift)


def add_branches(*kernels: Kernel) -> Kernel:
    """Transform 2: the sum of convolutions that look through the same windows.

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
    """Transform 3: a 1x1 convolution, then another of any size, as one.

    Exact where the map between them is padded with the bias of the first, which is what it
    makes of a padding of zeros.

    Args:
        first: 1x1, from C_in to C_mid channels.
        second: from C_mid to C_out channels.
        groups: of both.

    Raises:
        ValueError: the first is not 1x1, or the channels do not fit.
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
    """Transform 4: convolutions side by side, their output channels one after another."""
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
    """Transform 5: average pooling, zeros of its padding counted, as a convolution.

    Args:
        channels: of the input and of the output.
        kernel_size: K; each of the K * K cells weighs the same.
        groups: G of the convolution, which may be any divisor of the channels.
        dtype: of the kernel.
        device: of the kernel.

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
    """Transform 6: zeros around a kernel, which stays in the middle, up to (height, width).

    Raises:
        ValueError: the kernel is larger, or has no middle in that size.
    """
    weight, bias = kernel
    height, width = size[0] - weight.shape[2], size[1] - weight.shape[3]
    if min(height, width) < 0 or height % 2 or width % 2:
        raise ValueError(f"size must exceed {tuple(weight.shape[2:])} by even numbers, got {size}")
    zeros = (width // 2, width // 2, height // 2, height // 2)
    return Kernel(nn.functional.pad(weight, zeros), bias)


def as_official_conv_norm(weight: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """A convolution with a bias as one without, and the frozen batch norm that adds the bias.

    The layout of the official Deformable DETR, where each convolution of the backbone has a norm.

    Args:
        weight: (C_out, C_in / G, height, width).
        bias: (C_out,).

    Returns:
        The weight, and the state of a norm whose eps is `OFFICIAL_NORM_EPS`.
    """
    ones = torch.ones_like(bias)
    norm = {
        "weight": ones,
        "bias": bias,
        "running_mean": torch.zeros_like(bias),
        "running_var": ones - OFFICIAL_NORM_EPS,  # the square root of it plus eps is 1
    }
    return weight, norm


def with_official_norms(model: _Model) -> _Model:
    """A copy of a fused model in which each convolution has a frozen batch norm behind it again.

    The layout of the official Deformable DETR: what `fuse_model` made a bias is now the norm's.
    `model` itself does not change; all other tensors of the copy are its own.
    """
    tensors = [*model.parameters(), *model.buffers()]
    unfused = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for parent in list(unfused.modules()):
        for conv_name, norm_name in conv_norm_pairs(parent):
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if type(conv) is nn.Conv2d and conv.bias is not None and type(norm) is nn.Identity:
                _, state = as_official_conv_norm(conv.weight.detach(), conv.bias.detach())
                official = FrozenBatchNorm2d(conv.out_channels, eps=OFFICIAL_NORM_EPS)
                official.to(conv.bias).load_state_dict(state)
                conv.bias = None
                setattr(parent, norm_name, official)
    return unfused


def fuse_model(model: nn.Module) -> nn.Module:
    """A copy of `model` with each block fused, and each norm taken into its convolution.

    Every `ReparameterizedBlock` becomes one convolution. Norms follow their convolution in the
    blocks of torchvision's ResNets and in any `nn.Sequential` (MobileNetV2 is made of those);
    each leaves an `nn.Identity`. A convolution or norm that stands in several places stays.
    `model` itself does not change.

    Raises:
        ValueError: a block or such a norm uses the statistics of the batch.
    """
    fused = _fuse_blocks(copy.deepcopy(model), {})
    parents = list(fused.modules())
    places = Counter(id(child) for parent in parents for _, child in _children(parent))
    for parent in parents:
        for conv_name, norm_name in conv_norm_pairs(parent):
            conv, norm = getattr(parent, conv_name), getattr(parent, norm_name)
            if type(conv) is nn.Conv2d and is_affine_norm(norm) and places[id(conv)] == 1:
                _require_fixed(norm, f"{type(parent).__name__}.{norm_name}")
                weight, bias = fuse_conv_norm(kernel_of(conv), norm)
                conv.weight = nn.Parameter(weight.detach(), conv.weight.requires_grad)
                conv.bias = nn.Parameter(bias.detach(), conv.weight.requires_grad)
                setattr(parent, norm_name, nn.Identity())
    return fused


def _fuse_blocks(module: nn.Module, fused: dict[nn.Module, nn.Conv2d]) -> nn.Module:
    """`module` with its blocks replaced; `fused` is what became of those met before."""
    if isinstance(module, ReparameterizedBlock):
        if module not in fused:
            fused[module] = module.fuse()
        return fused[module]
    for name, child in _children(module):
        setattr(module, name, _fuse_blocks(child, fused))
    return module


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Unlike `named_children`, names a child twice that stands there twice."""
    everywhere = module.named_modules(remove_duplicate=False)
    return [(name, child) for name, child in everywhere if name and "." not in name]


def conv_norm_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the second gets what the first returns, and nothing else does.

    Told by the forward method, which a subclass may have replaced.
    """
    forward = type(parent).forward
    if forward in (nn.Sequential.forward, FoldingSequential.forward):
        names = [name for name, _ in _children(parent)]
        return list(itertools.pairwise(names))
    numbers = {ResNet.forward: 1, BasicBlock.forward: 2, Bottleneck.forward: 3}.get(forward, 0)
    return [(f"conv{number}", f"bn{number}") for number in range(1, numbers + 1)]


def _require_fixed(norm: nn.Module, name: str) -> None:
    if uses_batch_statistics(norm):
        raise ValueError(
            f"norms must be in eval mode to be fused, got {name} in train mode, where it uses the "
            "statistics of the batch; call eval() on the model first"
        )
