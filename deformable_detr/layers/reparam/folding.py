"""Folding of frozen batch norms into the convolutions before them, in every forward pass."""

from typing import TypeGuard

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.norm import scale_and_shift


class FoldingSequential(nn.Sequential):
    """A sequence that runs a plain convolution and the frozen batch norm after it as one.

    The weights of the convolution are scaled in every forward pass, so that parameters, their
    gradients and their names are those of the plain sequence. Only the passes over the features
    that scale and shift them are saved.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return the output of the plain sequence, up to rounding."""
        modules = list(self)
        is_folded = False  # whether this module was folded into the last one
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if is_folded:
                is_folded = False
            elif _folds(module, following):
                assert isinstance(following, FrozenBatchNorm2d)
                features = _convolve_and_normalize(module, following, features)
                is_folded = True
            else:
                features = module(features)
        return features


def fold_frozen_norms(module: nn.Module) -> nn.Module:
    """Replace each `nn.Sequential` whose norms all can be folded, and return the module.

    `module` itself is included. A sequence without frozen batch norms is kept.
    """
    for name, child in module.named_children():
        setattr(module, name, fold_frozen_norms(child))
    if not isinstance(module, nn.Sequential):
        return module
    children = dict(module.named_children())
    norms = [isinstance(child, FrozenBatchNorm2d) for child in children.values()]
    pairs = zip(children.values(), [*list(children.values())[1:], None], strict=True)
    if not any(norms) or sum(_folds(*pair) for pair in pairs) != sum(norms):
        return module
    folded = FoldingSequential()
    for name, child in children.items():
        folded.add_module(name, child)
    return folded


def _folds(module: nn.Module, following: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    return (
        type(module) is nn.Conv2d
        and module.bias is None
        and isinstance(following, FrozenBatchNorm2d)
    )


def _convolve_and_normalize(
    convolution: nn.Conv2d, norm: FrozenBatchNorm2d, features: Tensor
) -> Tensor:
    scale, shift = scale_and_shift(norm)
    return nn.functional.conv2d(
        features,
        convolution.weight * scale[:, None, None, None],
        shift,
        stride=convolution.stride,
        padding=convolution.padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
    )
