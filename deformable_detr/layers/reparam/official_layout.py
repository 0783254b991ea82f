"""Layout of the official Deformable DETR: a frozen batch norm after each convolution."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.reparam.fuse import conv_norm_pairs

_Model = TypeVar("_Model", bound=nn.Module)
OFFICIAL_NORM_EPS = 1e-5  # of the frozen batch norm of the official Deformable DETR


def as_official_conv_norm(weight: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Split a convolution with a bias into one without and a frozen batch norm that adds it.

    This is the layout of the official Deformable DETR, where each convolution of the backbone has
    a norm.

    Args:
        weight: (C_out, C_in / G, height, width).
        bias: (C_out,).

    Returns:
        The weight, and the state dict of a norm whose eps is `OFFICIAL_NORM_EPS`.
    """
    ones = torch.ones_like(bias)
    norm = {
        "weight": ones,
        "bias": bias,
        "running_mean": torch.zeros_like(bias),
        "running_var": ones - OFFICIAL_NORM_EPS,  # sqrt(running_var + eps) is 1
    }
    return weight, norm


def with_official_norms(model: _Model) -> _Model:
    """Return a copy of a fused model with a frozen batch norm after each convolution again.

    This is the layout of the official Deformable DETR: the biases that `fuse_model` made become
    those of the norms. `model` itself is unchanged; the copy shares all other tensors with it.
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
