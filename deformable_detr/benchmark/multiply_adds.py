"""Count the multiply-adds of a detector's forward pass without computing it."""

import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from deformable_detr.layers.deform_conv import (
    DeformConv2d,
    ModulatedDeformConv2d,
    OffsetGenerator,
)
from deformable_detr.layers.deform_kernel import DeformKernelConv2d
from deformable_detr.models.backbones.input_channels import input_channels

_Deformed = DeformConv2d | ModulatedDeformConv2d | DeformKernelConv2d


class _AsPlain(nn.Module):
    """Plain convolution in place of a deformable one, with the latter's offset generators."""

    def __init__(self, deformed: _Deformed) -> None:
        super().__init__()
        self.generators = [m for m in deformed.children() if isinstance(m, OffsetGenerator)]
        geometry = deformed.geometry
        self.weight = deformed.weight.new_empty(*deformed.weight.shape[:2], *geometry.kernel_size)
        self.arguments = (*geometry[1:], deformed.groups)

    def forward(self, features: Tensor) -> Tensor:
        for generator in self.generators:
            generator(features)
        return F.conv2d(features, self.weight, None, *self.arguments)


def count_multiply_adds(model: nn.Module, *, height: int, width: int) -> int:
    """Count multiply-adds of convolutions, linear layers and matrix products for one image.

    The literature on detectors calls them FLOPs. A deformable convolution counts as a plain one
    plus its offset generator; bilinear sampling, norms and sums are not counted.

    Args:
        model: detector in any mode; it is not modified.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    # With gradients: without, attention runs as one operator that is not counted.
    counted = copy.deepcopy(model).eval().requires_grad_()
    for name, module in list(counted.named_modules()):
        if isinstance(module, _Deformed):
            counted.set_submodule(name, _AsPlain(module))
    fakes, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    with fakes, counter:
        counted([torch.empty(input_channels(model), height, width)])
    return counter.get_total_flops() // 2
