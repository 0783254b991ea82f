"""Backbones, and replacements of their convolutions."""

from typing import Annotated, Literal

from pydantic import Field

from deformable_detr.config.base import FrozenModel, Positive, Strides


class PlainConvConfig(FrozenModel):
    """The backbone's own convolutions."""

    kind: Literal["plain"] = "plain"


class ReplacedConvConfig(FrozenModel):
    """Convolutions in the place of the backbone's own."""

    strides: Strides = (8, 16, 32)
    """Strides of the blocks whose convolutions of odd size above 1 are replaced. Frozen blocks
    stay as they are."""


class DeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 1 (Dai et al., ICCV 2017)."""

    kind: Literal["deform"] = "deform"
    offset_groups: Positive = 1
    """Groups of channels that have offsets of their own."""


class ModulatedDeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 2 (Zhu et al., CVPR 2019)."""

    kind: Literal["modulated_deform"] = "modulated_deform"
    offset_groups: Positive = 1
    """Groups of channels that have offsets and masks of their own."""

    mask_scale: float = 2.0
    """Upper end of the masks, which start at half of it: 2 starts as the plain convolution, 1 is
    the paper's."""


class BranchBlockConfig(ReplacedConvConfig):
    """Blocks of branches; the statistics of their norms are fixed as the backbone's `norm` says."""

    init: Literal["own_branch", "paper"] = "own_branch"
    """`own_branch` starts as the convolution that is replaced; with `paper` all branches count
    from the first step."""


class ACBlockConfig(BranchBlockConfig):
    """Asymmetric convolution blocks (ACNet, ICCV 2019)."""

    kind: Literal["ac_block"] = "ac_block"


class DiverseBranchConfig(BranchBlockConfig):
    """Diverse branch blocks (CVPR 2021)."""

    kind: Literal["diverse_branch"] = "diverse_branch"


class DeformKernelOptions(FrozenModel):
    """Deformable kernels: each tap's value is read from a stored kernel of `scope_size`."""

    rotation_groups: Positive = 1
    """Groups of channels that have kernel offsets of their own."""

    image_offsets: bool = False
    """Predict offsets of the taps in the feature map too, as a deformable convolution does; in
    local mode only."""

    kernel_offsets: bool = True
    """Predict where in the stored kernel each tap is read. May be false with `image_offsets`
    only."""

    mode: Literal["local", "global"] = "local"
    """`local` predicts kernel offsets for every position, `global` for the whole image."""

    clip_to_scope: bool = True
    """Keep kernel offsets within the stored kernel, as in the paper."""


class DeformKernelConfig(ReplacedConvConfig, DeformKernelOptions):
    """Deformable kernels (ICLR 2020), for depthwise convolutions alone."""

    kind: Literal["deform_kernel"] = "deform_kernel"
    scope_size: Positive = 5
    """Side of the stored kernel. An even one starts as the plain kernel too, but is sensitive to
    the first kernel offsets."""


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
    """Settings of every backbone."""

    out_strides: Strides = (8, 16, 32)
    """Strides of the feature maps for the neck, finest first."""

    freeze_up_to_stride: int = Field(4, ge=0)
    """Largest stride of blocks that are not trained; 0 trains all. 4 freezes a ResNet's stem and
    first stage, as in the paper."""

    norm: Literal["frozen_batch_norm", "batch_norm"] = "frozen_batch_norm"
    """`frozen_batch_norm` keeps statistics and parameters of batch norms as they are; `batch_norm`
    trains them."""

    weights: str = "none"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or a tag that timm publishes."""

    conv: ConvConfig = PlainConvConfig()
    """Convolutions in the place of the backbone's own."""


class ResNetConfig(BackboneBase):
    """A torchvision ResNet."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers."""

    dilation: bool = False
    """Dilate the last stage and leave it at stride 16, the paper's DC5 variant; depth 50 and
    above."""

    weights: str = "imagenet1k_v1"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or a name that torchvision
    publishes."""


class MobileNetV2Config(BackboneBase):
    """torchvision's MobileNetV2."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    weights: str = "imagenet1k_v1"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or a name that torchvision
    publishes."""


class TimmConfig(BackboneBase):
    """Any timm model with feature maps."""

    kind: Literal["timm"] = "timm"
    name: str
    """Name of the model, without a pre-trained tag."""


BackboneConfig = Annotated[
    ResNetConfig | MobileNetV2Config | TimmConfig, Field(discriminator="kind")
]
