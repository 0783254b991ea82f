"""Settings of backbones, and of the convolutions that replace theirs."""

from typing import Annotated, Literal

from pydantic import Field

from deformable_detr.config.base import FrozenModel, Groups, Strides


class PlainConvConfig(FrozenModel):
    """The backbone's own convolutions."""

    kind: Literal["plain"] = "plain"


class ReplacedConvConfig(FrozenModel):
    """Convolutions that replace those of the backbone."""

    strides: Strides = (8, 16, 32)
    """Strides of the blocks in which convolutions of odd kernel size above 1 are replaced. Frozen
    blocks are not changed."""


class DeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 1 (Dai et al., ICCV 2017)."""

    kind: Literal["deform"] = "deform"
    offset_groups: Groups = 1
    """Number of channel groups with separate offsets."""


class ModulatedDeformConvConfig(ReplacedConvConfig):
    """Deformable convolutions, version 2 (Zhu et al., CVPR 2019)."""

    kind: Literal["modulated_deform"] = "modulated_deform"
    offset_groups: Groups = 1
    """Number of channel groups with separate offsets and masks."""

    mask_scale: float = 2.0
    """Maximum of the masks, which are initialized to half of it: 2 starts as the plain convolution,
    1 is the paper's value."""


class BranchBlockConfig(ReplacedConvConfig):
    """Multi-branch blocks; the statistics of their norms are frozen or not as in the backbone."""

    init: Literal["own_branch", "paper"] = "own_branch"
    """`own_branch` starts as the convolution that is replaced; with `paper` all branches contribute
    from the first step."""


class ACBlockConfig(BranchBlockConfig):
    """Asymmetric convolution blocks (ACNet, ICCV 2019)."""

    kind: Literal["ac_block"] = "ac_block"


class DiverseBranchConfig(BranchBlockConfig):
    """Diverse branch blocks (CVPR 2021)."""

    kind: Literal["diverse_branch"] = "diverse_branch"


class DeformKernelOptions(FrozenModel):
    """Deformable kernels: tap weights are sampled from a stored kernel of `scope_size`."""

    rotation_groups: Groups = 1
    """Number of channel groups with separate kernel offsets."""

    image_offsets: bool = False
    """Also predict offsets of the taps in the feature map, as a deformable convolution does; local
    mode only."""

    kernel_offsets: bool = True
    """Predict offsets at which taps are sampled from the stored kernel. May be false only with
    `image_offsets`."""

    mode: Literal["local", "global"] = "local"
    """`local` predicts kernel offsets per position, `global` per image."""

    clip_to_scope: bool = True
    """Keep kernel offsets within the stored kernel, as in the paper."""


class DeformKernelConfig(ReplacedConvConfig, DeformKernelOptions):
    """Deformable kernels (ICLR 2020), for depthwise convolutions only."""

    kind: Literal["deform_kernel"] = "deform_kernel"
    scope_size: int = Field(5, gt=0, le=31)
    """Side length of the stored kernel. With an even side the block starts as the plain kernel too,
    but is sensitive to the first kernel offsets."""


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
    """Settings shared by all backbones."""

    in_channels: int = Field(3, ge=1, le=16)
    """Number of channels of the images: 3 for RGB, 1 for gray, or up to 16 of [.npy and TIFF
    files](annotations.md#channels). In pre-trained weights, the first convolution's three channels
    are repeated and multiplied by 3 / `in_channels`; one channel gets their sum."""

    out_strides: Strides = (8, 16, 32)
    """Strides of the feature maps for the neck, finest first."""

    freeze_up_to_stride: int = Field(4, ge=0)
    """Largest stride of frozen blocks; 0 trains all blocks, 4 freezes a ResNet's stem and first
    stage, as in the paper."""

    norm: Literal["frozen_batch_norm", "batch_norm"] = "frozen_batch_norm"
    """`frozen_batch_norm` freezes statistics and parameters of batch norms; `batch_norm` trains
    them."""

    weights: str = "none"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or a pre-trained tag of timm."""

    conv: ConvConfig = PlainConvConfig()
    """Convolutions that replace those of the backbone."""


class ResNetConfig(BackboneBase):
    """ResNet of torchvision."""

    kind: Literal["resnet"] = "resnet"
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers."""

    dilation: bool = False
    """Dilate the last stage and keep it at stride 16, the paper's DC5 variant; depth 50 or more."""

    weights: str = "imagenet1k_v1"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or the name of weights of
    torchvision."""


class MobileNetV2Config(BackboneBase):
    """MobileNetV2 of torchvision."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    weights: str = "imagenet1k_v1"
    """Pre-trained weights: `none`, a .pth or .safetensors file, or the name of weights of
    torchvision."""


class TimmConfig(BackboneBase):
    """Model of timm with feature maps that takes images of any size."""

    kind: Literal["timm"] = "timm"
    name: str
    """Name of the model, without a pre-trained tag."""

    padding: Literal["full", "required"] = "full"
    """Padding of the images, at the right and the bottom, to a multiple of the coarsest stride, or
    of what the model needs. `full` pads where the maps would leave the last pixels without a cell,
    `required` only where the model cannot run otherwise."""


BackboneConfig = Annotated[
    ResNetConfig | MobileNetV2Config | TimmConfig, Field(discriminator="kind")
]
