"""Builders of the detector and its parts."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from typing_extensions import assert_never

from deformable_detr.arguments import checked
from deformable_detr.builders.model_size import require_memory_for
from deformable_detr.config import (
    ACBlockConfig,
    ASFFNeckConfig,
    BackboneConfig,
    ChannelMapperConfig,
    DecoderConfig,
    DeformConvConfig,
    DeformKernelConfig,
    DeformKernelNeckConfig,
    DiverseBranchConfig,
    EncoderConfig,
    LearnedPositionConfig,
    LearnedQueriesConfig,
    MobileNetV2Config,
    ModelConfig,
    ModulatedDeformConvConfig,
    NeckConfig,
    PositionConfig,
    ResNetConfig,
    RunConfig,
    SinePositionConfig,
    TimmConfig,
    TwoStageQueriesConfig,
)
from deformable_detr.layers.deform_kernel import DeformKernelResidual
from deformable_detr.layers.position import LearnedPositionEmbedding, SinePositionEmbedding
from deformable_detr.layers.reparam.base import Statistics
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.backbones.surgery import (
    Replacement,
    ac_block,
    deform_conv,
    deform_kernel,
    diverse_branch_block,
    modulated_deform_conv,
    replace_convs,
)
from deformable_detr.models.backbones.timm_adapter import TimmBackbone
from deformable_detr.models.backbones.torchvision_adapter import build_mobilenet_v2, build_resnet
from deformable_detr.models.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
)
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.models.denoising import DenoisingQueries
from deformable_detr.models.encoder import (
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
)
from deformable_detr.models.memory import MemoryBuilder
from deformable_detr.models.mimicking import FeatureMimicking
from deformable_detr.models.necks.asff import ASFF, ASFFNeck
from deformable_detr.models.necks.base import Neck
from deformable_detr.models.necks.channel_mapper import ChannelMapper
from deformable_detr.models.necks.deform_kernel import DeformKernelNeck
from deformable_detr.models.proposals import ProposalQueries
from deformable_detr.models.queries import LearnedQueries

logger = logging.getLogger(__name__)
_Layer = TypeVar("_Layer", DeformableTransformerEncoderLayer, DeformableTransformerDecoderLayer)
_WEIGHT_FILES = (".pth", ".pt", ".safetensors")
_COCO_CLASSES = {False: 80, True: 91}  # contiguous; raw category ids, which end at 90


@checked
def build_model(
    config: RunConfig, *, num_classes: int | None = None, load_backbone_weights: bool = True
) -> DeformableDETR:
    """Build the detector of a run.

    Args:
        config: config of the run.
        num_classes: K, from the label space; None for COCO: 80, or 91 with `match_official`.
        load_backbone_weights: load pre-trained backbone weights; not needed if a checkpoint
            follows.

    Raises:
        ConfigError: the machine has not enough memory for the model.
    """
    require_memory_for(config.model)
    if num_classes is None:
        num_classes = _COCO_CLASSES[config.match_official]
    return _build_detector(
        config.model,
        num_classes=num_classes,
        load_backbone_weights=load_backbone_weights,
        gradient_checkpointing=config.train.gradient_checkpointing,
        frozen_roles=config.train.freeze,
    )


def _build_detector(
    config: ModelConfig,
    *,
    num_classes: int,
    load_backbone_weights: bool,
    gradient_checkpointing: bool,
    frozen_roles: Sequence[str],
) -> DeformableDETR:
    backbone = build_backbone(config.backbone, load_weights=load_backbone_weights)
    neck = build_neck(config.neck, channels=backbone.channels, embed_dim=config.embed_dim)
    encoder_layers = _build_layers(
        DeformableTransformerEncoderLayer, config.encoder, config, num_levels=neck.num_levels
    )
    decoder_layers = _build_layers(
        DeformableTransformerDecoderLayer, config.decoder, config, num_levels=neck.num_levels
    )
    return DeformableDETR(
        backbone=backbone,
        neck=neck,
        memory_builder=MemoryBuilder(
            build_position(config.position, embed_dim=config.embed_dim),
            embed_dim=config.embed_dim,
            num_levels=neck.num_levels,
        ),
        encoder=DeformableTransformerEncoder(
            encoder_layers, gradient_checkpointing=gradient_checkpointing
        ),
        queries=build_queries(config, num_classes=num_classes),
        decoder=DeformableTransformerDecoder(
            decoder_layers,
            num_classes=num_classes,
            embed_dim=config.embed_dim,
            box_refinement=config.decoder.box_refinement,
            two_stage=config.queries.kind == "two_stage",
            position=config.decoder.position,
            look_forward_twice=config.decoder.look_forward_twice,
            center_offset=getattr(config.queries, "center_offset", "image"),
            share_heads=config.decoder.share_heads,
            gradient_checkpointing=gradient_checkpointing,
        ),
        denoising=_build_denoising(config, num_classes=num_classes),
        mimicking=_build_mimicking(config, backbone.channels[-1], num_classes=num_classes),
        frozen_roles=frozen_roles,
    )


def _build_denoising(config: ModelConfig, *, num_classes: int) -> DenoisingQueries | None:
    if config.denoising is None:
        return None
    return DenoisingQueries(
        num_classes=num_classes,
        embed_dim=config.embed_dim,
        num_queries=config.denoising.num_queries,
        label_noise=config.denoising.label_noise,
        box_noise=config.denoising.box_noise,
    )


def _build_mimicking(
    config: ModelConfig, backbone_channels: int, *, num_classes: int
) -> FeatureMimicking | None:
    if config.mimicking is None:
        return None
    return FeatureMimicking(
        backbone_channels=backbone_channels,
        embed_dim=config.embed_dim,
        num_classes=num_classes,
        max_regions=config.mimicking.max_regions,
        crop_size_px=config.mimicking.crop_size_px,
    )


def _build_layers(
    kind: Callable[..., _Layer],
    stack: EncoderConfig | DecoderConfig,
    config: ModelConfig,
    *,
    num_levels: int,
) -> list[_Layer]:
    """Build the layers of the encoder or the decoder."""
    return [
        kind(
            embed_dim=config.embed_dim,
            num_heads=config.attention.num_heads,
            num_levels=num_levels,
            num_points=stack.num_points,
            ffn_dim=stack.ffn_dim,
            dropout=stack.dropout,
            backend=config.attention.backend,
        )
        for _ in range(stack.num_layers)
    ]


def build_backbone(config: BackboneConfig, *, load_weights: bool = True) -> Backbone:
    """Build the backbone, load its pre-trained weights, then replace its convolutions."""
    backbone = _build_plain_backbone(config, load_weights=load_weights)
    if replaced := replace_backbone_convs(backbone, config):
        logger.info("%d convolutions replaced: %s", len(replaced), ", ".join(replaced))
    return backbone


def replace_backbone_convs(backbone: Backbone, config: BackboneConfig) -> list[str]:
    """Replace convolutions of a plain backbone in place, as configured; return their names."""
    if config.conv.kind == "plain":
        return []
    norm: Statistics = "frozen" if config.norm == "frozen_batch_norm" else "train"
    replacement = build_replacement(config.conv, norm=norm)
    return replace_convs(backbone, replacement, strides=config.conv.strides)


def _build_plain_backbone(config: BackboneConfig, *, load_weights: bool) -> Backbone:
    weights = _weights(config.weights) if load_weights else None
    freeze_norm = config.norm == "frozen_batch_norm"
    norm_layer = FrozenBatchNorm2d if freeze_norm else nn.BatchNorm2d
    match config:
        case ResNetConfig():
            return build_resnet(
                config.depth,
                out_strides=config.out_strides,
                dilation=config.dilation,
                freeze_up_to_stride=config.freeze_up_to_stride,
                norm_layer=norm_layer,
                weights=weights,
                in_channels=config.in_channels,
            )
        case MobileNetV2Config():
            return build_mobilenet_v2(
                out_strides=config.out_strides,
                freeze_up_to_stride=config.freeze_up_to_stride,
                norm_layer=norm_layer,
                weights=weights,
                in_channels=config.in_channels,
            )
        case TimmConfig():
            return TimmBackbone(
                config.name,
                out_strides=config.out_strides,
                freeze_up_to_stride=config.freeze_up_to_stride,
                freeze_norm=freeze_norm,
                weights=weights,
                padding=config.padding,
                in_channels=config.in_channels,
            )
        case _:
            assert_never(config)


def build_replacement(
    config: DeformConvConfig
    | ModulatedDeformConvConfig
    | ACBlockConfig
    | DiverseBranchConfig
    | DeformKernelConfig,
    *,
    norm: Statistics,
) -> Replacement:
    """Build the function that replaces a convolution of the backbone.

    Args:
        config: config of the convolutions.
        norm: statistics of the norms within a block: "frozen" or "train".
    """
    match config:
        case DeformConvConfig():
            return deform_conv(offset_groups=config.offset_groups)
        case ModulatedDeformConvConfig():
            return modulated_deform_conv(
                offset_groups=config.offset_groups, mask_scale=config.mask_scale
            )
        case ACBlockConfig():
            return ac_block(norm=norm, init=config.init)
        case DiverseBranchConfig():
            return diverse_branch_block(norm=norm, init=config.init)
        case DeformKernelConfig():
            return deform_kernel(
                scope_size=config.scope_size,
                rotation_groups=config.rotation_groups,
                mode=config.mode,
                clip_to_scope=config.clip_to_scope,
                kernel_offsets=config.kernel_offsets,
                image_offsets=config.image_offsets,
            )
        case _:
            assert_never(config)


def _weights(value: str) -> str | Path | None:
    """Parse a `weights` setting: return None, a file, or a published name."""
    if value == "none":
        return None
    return Path(value) if value.endswith(_WEIGHT_FILES) or "/" in value else value


def build_neck(config: NeckConfig, *, channels: Sequence[int], embed_dim: int) -> Neck:
    """Build the neck for a backbone with the given channels."""
    match config:
        case ChannelMapperConfig():
            return ChannelMapper(channels, embed_dim=embed_dim, num_levels=config.num_levels)
        case ASFFNeckConfig():
            fusion = ASFF(
                embed_dim,
                config.num_levels,
                rfb=config.rfb,
                norm=config.norm,
                activation=config.activation,
                init=config.init,
                mask_padding=config.mask_padding,
                compress_equal=config.compress_equal,
                logit_activation=config.logit_activation,
            )
            return ASFFNeck(channels, embed_dim=embed_dim, fusion=fusion)
        case DeformKernelNeckConfig():
            make_residual = functools.partial(
                DeformKernelResidual,
                embed_dim,
                scope_size=config.scope_size,
                rotation_groups=config.rotation_groups,
                mode=config.mode,
                clip_to_scope=config.clip_to_scope,
                kernel_offsets=config.kernel_offsets,
                image_offsets=config.image_offsets,
            )
            return DeformKernelNeck(
                channels,
                embed_dim=embed_dim,
                num_levels=config.num_levels,
                make_residual=make_residual,
            )
        case _:
            assert_never(config)


def build_position(config: PositionConfig, *, embed_dim: int) -> nn.Module:
    """Build the position embedding."""
    match config:
        case SinePositionConfig():
            return SinePositionEmbedding(
                embed_dim, temperature=config.temperature, offset=config.offset
            )
        case LearnedPositionConfig():
            return LearnedPositionEmbedding(embed_dim, max_cells=config.max_cells)
        case _:
            assert_never(config)


def build_queries(config: ModelConfig, *, num_classes: int) -> LearnedQueries | ProposalQueries:
    """Build the module that makes the decoder's queries."""
    match config.queries:
        case LearnedQueriesConfig():
            return LearnedQueries(config.queries.num_queries, config.embed_dim)
        case TwoStageQueriesConfig():
            return ProposalQueries(
                config.queries.num_queries,
                num_classes=num_classes,
                embed_dim=config.embed_dim,
                content=config.queries.content,
                ranking=config.queries.ranking,
                center_offset=config.queries.center_offset,
                has_positions=config.decoder.position == "query",
                base_size=config.queries.base_size,
            )
        case _:
            assert_never(config.queries)
