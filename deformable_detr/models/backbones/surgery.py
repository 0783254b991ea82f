"""Replacement of a backbone's convolutions by other kinds that keep the pre-trained weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.layers.deform_kernel import (
    DeformKernelConv2d,
    DeformKernelMode,
    centered_scope_weight,
)
from deformable_detr.layers.norm import is_affine_norm
from deformable_detr.layers.reparam.base import BlockInit, ReparameterizedBlock, Statistics
from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock
from deformable_detr.layers.reparam.fuse import conv_norm_pairs
from deformable_detr.models.backbones.base import Backbone

_Block = TypeVar("_Block", DeformConv2d, ModulatedDeformConv2d, DeformKernelConv2d)
_REPLACEMENTS = (DeformConv2d, ModulatedDeformConv2d, DeformKernelConv2d, ReparameterizedBlock)


@dataclass(frozen=True)
class Replacement:
    """A module that replaces convolutions, and the convolutions that it can replace.

    Attributes:
        make: from a convolution and the norm after it, or None, a module that starts equal to
            the two.
        takes_norm: whether the module also replaces the norm, if one is known to follow; if
            False, `make` gets None.
        depthwise_only: whether it replaces depthwise convolutions only.
    """

    make: Callable[[nn.Conv2d, nn.Module | None], nn.Module]
    takes_norm: bool = False
    depthwise_only: bool = False


def deform_conv(*, offset_groups: int = 1) -> Replacement:
    """Return a replacement by deformable convolutions v1, which start as what they replace."""

    def make(conv: nn.Conv2d, _: nn.Module | None) -> nn.Module:
        block = DeformConv2d(*_geometry(conv), offset_groups=offset_groups)
        return _with_parameters(block, conv.weight, conv.bias)

    return Replacement(make)


def modulated_deform_conv(*, mask_scale: float, offset_groups: int = 1) -> Replacement:
    """Return a replacement by deformable convolutions v2.

    With `mask_scale` 2 they start as what they replace.
    """

    def make(conv: nn.Conv2d, _: nn.Module | None) -> nn.Module:
        block = ModulatedDeformConv2d(
            *_geometry(conv), offset_groups=offset_groups, mask_scale=mask_scale
        )
        return _with_parameters(block, conv.weight, conv.bias)

    return Replacement(make)


def ac_block(*, norm: Statistics = "frozen", init: BlockInit = "own_branch") -> Replacement:
    """Return a replacement by asymmetric convolution blocks.

    With `init="own_branch"` they start as what they replace.
    """
    make = functools.partial(ACBlock.from_conv_norm, norm=norm, init=init)
    return Replacement(make, takes_norm=True)


def diverse_branch_block(
    *, norm: Statistics = "frozen", init: BlockInit = "own_branch"
) -> Replacement:
    """Return a replacement by diverse branch blocks.

    With `init="own_branch"` they start as what they replace.
    """
    make = functools.partial(DiverseBranchBlock.from_conv_norm, norm=norm, init=init)
    return Replacement(make, takes_norm=True)


def deform_kernel(
    *,
    scope_size: int,
    rotation_groups: int = 1,
    mode: DeformKernelMode = "local",
    clip_to_scope: bool = True,
    kernel_offsets: bool = True,
    image_offsets: bool = False,
) -> Replacement:
    """Return a replacement of depthwise convolutions by deformable kernels.

    They start as what they replace. A scope that is larger by an even number contains the kernel
    unchanged; see `centered_scope_weight` for others. The arguments are those of
    `DeformKernelConv2d`.
    """

    def make(conv: nn.Conv2d, _: nn.Module | None) -> nn.Module:
        block = DeformKernelConv2d(
            *_geometry(conv),
            scope_size=scope_size,
            rotation_groups=rotation_groups,
            mode=mode,
            clip_to_scope=clip_to_scope,
            kernel_offsets=kernel_offsets,
            image_offsets=image_offsets,
        )
        return _with_parameters(block, centered_scope_weight(conv.weight, scope_size), conv.bias)

    return Replacement(make, depthwise_only=True)


def replace_convs(
    backbone: Backbone, replacement: Replacement, *, strides: Sequence[int]
) -> list[str]:
    """Replace the convolutions of odd size above 1 in the blocks of some strides, in place.

    Convolutions that are not trained, such as those of frozen blocks, are kept.

    Args:
        backbone: backbone that already has its pre-trained weights.
        replacement: module that replaces the convolutions.
        strides: strides of the outputs of the blocks.

    Returns:
        Names of the replaced convolutions.

    Raises:
        ValueError: the backbone has no such convolution or stride, or a convolution has already
            been replaced or cannot be replaced; the backbone is unchanged.
    """
    blocks = backbone.blocks()
    offered = sorted({stride for stride, _ in blocks})
    if not strides or not set(strides) <= set(offered):
        raise ValueError(
            f"strides of replaced convolutions must be among {offered}, got {list(strides)}"
        )
    members = {
        module for stride, block in blocks if stride in strides for module in block.modules()
    }
    inside = {name: module for name, module in backbone.named_modules() if module in members}
    _require_first(inside)
    convs = {
        name: module
        for name, module in inside.items()
        if type(module) is nn.Conv2d and _is_replaceable(module, replacement)
    }
    if not convs:
        kind = "depthwise convolution" if replacement.depthwise_only else "convolution"
        raise ValueError(
            f"backbone must have a trained {kind} of odd size above 1 at the strides "
            f"{list(strides)}, got none; choose another backbone or a lower freeze_up_to_stride"
        )
    norms = _norms_behind(backbone) if replacement.takes_norm else {}
    made = {name: _make(replacement, name, conv, norms) for name, conv in convs.items()}
    for name, block in made.items():
        backbone.set_submodule(name, block)
        if convs[name] in norms:
            backbone.set_submodule(norms[convs[name]][0], nn.Identity())
    return list(made)


def _require_first(modules: Mapping[str, nn.Module]) -> None:
    """Raise if a module is a replacement already: the branches of a block cannot have offsets."""
    for name, module in modules.items():
        if isinstance(module, _REPLACEMENTS):
            raise ValueError(
                f"each convolution must be replaced at most once, got {type(module).__name__} "
                f"at {name}; choose one kind, or other strides"
            )


def _is_replaceable(conv: nn.Conv2d, replacement: Replacement) -> bool:
    is_depthwise = conv.in_channels == conv.out_channels == conv.groups
    is_odd = all(size > 1 and size % 2 for size in conv.kernel_size)
    is_trained = conv.weight.requires_grad
    return is_odd and is_trained and (is_depthwise or not replacement.depthwise_only)


def _norms_behind(backbone: Backbone) -> dict[nn.Module, tuple[str, nn.Module]]:
    """Return the norm, with its name, after each convolution that is known to have one."""
    found: dict[nn.Module, tuple[str, nn.Module]] = {}
    for parent_name, parent in backbone.named_modules():
        for conv_name, norm_name in conv_norm_pairs(parent):
            norm = getattr(parent, norm_name)
            if is_affine_norm(norm):
                found[getattr(parent, conv_name)] = (f"{parent_name}.{norm_name}", norm)
    return found


def _make(
    replacement: Replacement,
    name: str,
    conv: nn.Conv2d,
    norms: Mapping[nn.Module, tuple[str, nn.Module]],
) -> nn.Module:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError(
            f"padding of {name} must be a number of zeros to be replaced, got "
            f"{conv.padding!r} of {conv.padding_mode}"
        )
    _, norm = norms.get(conv, ("", None))
    try:
        block = replacement.make(conv, norm)
    except ValueError as error:
        raise ValueError(f"{name} cannot be replaced: {error}") from error
    return block.to(conv.weight.device, conv.weight.dtype).train(conv.training)


@torch.no_grad()
def _with_parameters(block: _Block, weight: Tensor, bias: Tensor | None) -> _Block:
    block.weight.copy_(weight)
    if block.bias is not None and bias is not None:
        block.bias.copy_(bias)
    return block


def _geometry(conv: nn.Conv2d) -> tuple[Any, ...]:
    """Return the arguments of the convolution that the replacements have too."""
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
    window = (conv.stride, conv.padding, conv.dilation)
    return (*shape, *window, conv.groups, conv.bias is not None)
