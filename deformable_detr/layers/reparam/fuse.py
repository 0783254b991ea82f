"""Fusion of a model's re-parameterized blocks and norms into plain convolutions."""

import copy
import itertools
from collections import Counter

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from deformable_detr.layers.norm import is_affine_norm, uses_batch_statistics
from deformable_detr.layers.reparam.algebra import fuse_conv_norm, kernel_of
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.layers.reparam.folding import FoldingSequential


def fuse_model(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with each block and each norm fused into a convolution.

    Every `ReparameterizedBlock` becomes one convolution. Norms after a convolution are fused in
    the blocks of torchvision's ResNets and in any `nn.Sequential` (MobileNetV2 consists of them);
    each is replaced by an `nn.Identity`. A convolution that is used in several places keeps its
    norm. `model` itself is unchanged.

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
    """Fuse the blocks of `module` in place; `fused` maps blocks already seen to convolutions."""
    if isinstance(module, ReparameterizedBlock):
        if module not in fused:
            fused[module] = module.fuse()
        return fused[module]
    for name, child in _children(module):
        setattr(module, name, _fuse_blocks(child, fused))
    return module


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the children by name, with shared ones under each name, unlike `named_children`."""
    everywhere = module.named_modules(remove_duplicate=False)
    return [(name, child) for name, child in everywhere if name and "." not in name]


def conv_norm_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Return name pairs of children where the output of the first goes to the second only.

    The pairs are known from the forward method, which a subclass may have replaced.
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
