"""Backbones, and replacements of their convolutions."""

from typing import Annotated, Literal

from pydantic import Field

from deformable_detr.config.base import FrozenModel, Positive, Strides


class PlainConvConfig(FrozenModel):
    """The backbone's own convolutions."""

    kind: Literal["plain"] = "plain"


class ReplacedConvConfig(FrozenModel):
    """Convolutions of odd size above 1, in trained blocks of `strides`, are replaced."""

    strides: Strides = (8, 16, 32)


class DeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 1."""

    kind: Literal["deform"] = "deform"
    offset_groups: Positive = 1


class ModulatedDeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 2; with `mask_scale` 2 they start as plain ones."""

    kind: Literal["modulated_deform"] = "modulated_deform"
    offset_groups: Positive = 1
    mask_scale: float = 2.0


class BranchBlockConfig(ReplacedConvConfig):
    """Blocks of branches; their norms' statistics are fixed as `norm` says.

    With `init: own_branch` a block starts as what it replaces; with `paper` all its branches
    count from the first step.
    """

    init: Literal["own_branch", "paper"] = "own_branch"


class ACBlockConfig(BranchBlockConfig):
    """Asymmetric convolution blocks."""

    kind: Literal["ac_block"] = "ac_block"


class DiverseBranchConfig(BranchBlockConfig):
    """Diverse branch blocks."""

    kind: Literal["diverse_branch"] = "diverse_branch"


class DeformKernelOptions(FrozenModel):
    """Deformable kernels: how each tap's value is read from a stored kernel of `scope_size`.

    `kernel_offsets` predicts the places, a set a position (`mode: local`) or one an image
    (`global`), kept in the scope with `clip_to_scope`; channels are in `rotation_groups`.
    `image_offsets` moves the taps in the map too, in local mode.
    """

    rotation_groups: Positive = 1
    image_offsets: bool = False
    kernel_offsets: bool = True
    mode: Literal["local", "global"] = "local"
    clip_to_scope: bool = True


class DeformKernelConfig(ReplacedConvConfig, DeformKernelOptions):
    """Deformable kernels, for depthwise convolutions.

    An even `scope_size` starts as the plain kernel too, but is sensitive to the first rotations.
    """

    kind: Literal["deform_kernel"] = "deform_kernel"
    scope_size: Positive = 5


ConvConfig = Annotated[
    PlainConvConfig
    | DeformConvConfig
    | ModulatedDeformConvConfig
    | ACBlockConfig
    | DiverseBranchConfig
    | DeformKernelConfig,
    Field(discriminator="kind"),
]


class BackboneBase(FrozenModel):
    """Settings of every backbone.

    `weights` is "none", a .pth or .safetensors file, or the name of weights that the library
    publishes. Blocks of at most `freeze_up_to_stride` are not trained; 0 trains all. `conv` is
    what stands in for the convolutions of others.
    """

    out_strides: Strides = (8, 16, 32)
    freeze_up_to_stride: int = Field(4, ge=0)
    norm: Literal["frozen_batch_norm", "batch_norm"] = "frozen_batch_norm"
    weights: str = "none"
    conv: ConvConfig = PlainConvConfig()


class ResNetConfig(BackboneBase):
    """A torchvision ResNet; `dilation` is the DC5 variant."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    dilation: bool = False
    weights: str = "imagenet1k_v1"


class MobileNetV2Config(BackboneBase):
    """torchvision's MobileNetV2."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    weights: str = "imagenet1k_v1"


class TimmConfig(BackboneBase):
    """Any timm model with feature maps, by its name without a pre-trained tag."""

    kind: Literal["timm"] = "timm"
    name: str


BackboneConfig = Annotated[
    ResNetConfig | MobileNetV2Config | TimmConfig, Field(discriminator="kind")
]
