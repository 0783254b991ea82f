"""How many multiply-adds a detector's forward pass has, counted without computing it."""

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

_Deformed = DeformConv2d | ModulatedDeformConv2d | DeformKernelConv2d


class _AsPlain(nn.Module):
    """The convolutions that say where a deformed one looks, and a plain one in its place."""

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
    """Those of convolutions, linear layers and matrix products, for one image.

    What the literature on detectors calls FLOPs. A deformed convolution counts as the plain one
    and what generates its offsets; bilinear sampling, norms and sums are not counted.

    Args:
        model: a detector, in any mode; is not changed.
        height: of the image, in pixels.
        width: alike.
    """
    # With gradients, as attention would run as one operator without, which is not counted.
    counted = copy.deepcopy(model).eval().requires_grad_()
    for name, module in list(counted.named_modules()):
        if isinstance(module, _Deformed):
            counted.set_submodule(name, _AsPlain(module))
    fakes, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    with fakes, counter:
        counted([torch.empty(3, height, width)])
    return counter.get_total_flops() // 2
