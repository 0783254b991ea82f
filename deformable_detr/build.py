"""Config -> objects: the only file that knows every part."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer
from torchvision.ops import FrozenBatchNorm2d
from typing_extensions import assert_never

from deformable_detr.config import (
    AdamWConfig,
    AugmentationConfig,
    BackboneConfig,
    ChannelMapperConfig,
    CocoAugmentationConfig,
    ConfigError,
    CosineScheduleConfig,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    LearnedPositionConfig,
    LearnedQueriesConfig,
    LossConfig,
    MobileNetV2Config,
    ModelConfig,
    OptimizerConfig,
    PositionConfig,
    ResNetConfig,
    SGDConfig,
    SinePositionConfig,
    SplitConfig,
    StepScheduleConfig,
    TimmConfig,
    TrainConfig,
    TwoStageQueriesConfig,
    ZoomCropAugmentationConfig,
)
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.samplers import DistributedOrderSampler, MicroBatchSampler, StepSampler
from deformable_detr.data.transforms import (
    ColorJitter,
    Compose,
    RandomHorizontalFlip,
    RandomRotate90,
    RandomSoften,
    RandomZoomCrop,
    Transform,
    coco_train_transform,
    resize_only,
)
from deformable_detr.engine.optimizer import HasParameterRoles, adamw, parameter_groups, sgd
from deformable_detr.engine.schedule import CosineSchedule, Schedule, StepSchedule
from deformable_detr.labels import LabelSpace
from deformable_detr.layers.position import LearnedPositionEmbedding, SinePositionEmbedding
from deformable_detr.losses.criterion import LossWeights, SetCriterion
from deformable_detr.losses.matcher import HungarianMatcher
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.backbones.timm_adapter import TimmBackbone
from deformable_detr.models.backbones.torchvision_adapter import build_mobilenet_v2, build_resnet
from deformable_detr.models.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
)
from deformable_detr.models.detector import DeformableDETR
from deformable_detr.models.encoder import (
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
)
from deformable_detr.models.memory import MemoryBuilder
from deformable_detr.models.necks.base import Neck
from deformable_detr.models.necks.channel_mapper import ChannelMapper
from deformable_detr.models.proposals import ProposalQueries
from deformable_detr.models.queries import LearnedQueries

_Layer = TypeVar("_Layer", DeformableTransformerEncoderLayer, DeformableTransformerDecoderLayer)
_WEIGHT_FILES = (".pth", ".pt", ".safetensors")


def build_model(
    config: ModelConfig, *, num_classes: int, load_backbone_weights: bool = True
) -> DeformableDETR:
    """The detector.

    Args:
        config: of the model.
        num_classes: K, from the label space.
        load_backbone_weights: False where a checkpoint is going to be loaded.
    """
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
        encoder=DeformableTransformerEncoder(encoder_layers),
        queries=build_queries(config, num_classes=num_classes),
        decoder=DeformableTransformerDecoder(
            decoder_layers,
            num_classes=num_classes,
            embed_dim=config.embed_dim,
            box_refinement=config.decoder.box_refinement,
            two_stage=config.queries.kind == "two_stage",
        ),
    )


def _build_layers(
    kind: Callable[..., _Layer],
    stack: EncoderConfig | DecoderConfig,
    config: ModelConfig,
    *,
    num_levels: int,
) -> list[_Layer]:
    """The layers of one stack."""
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
    """The backbone, with its pre-trained weights if wanted."""
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
            )
        case MobileNetV2Config():
            return build_mobilenet_v2(
                out_strides=config.out_strides,
                freeze_up_to_stride=config.freeze_up_to_stride,
                norm_layer=norm_layer,
                weights=weights,
            )
        case TimmConfig():
            return TimmBackbone(
                config.name,
                out_strides=config.out_strides,
                freeze_up_to_stride=config.freeze_up_to_stride,
                freeze_norm=freeze_norm,
                weights=weights,
            )
        case _:
            assert_never(config)


def _weights(value: str) -> str | Path | None:
    """None, a file, or a published name."""
    if value == "none":
        return None
    return Path(value) if value.endswith(_WEIGHT_FILES) or "/" in value else value


def build_neck(config: ChannelMapperConfig, *, channels: Sequence[int], embed_dim: int) -> Neck:
    """The neck for a backbone of the given channels."""
    return ChannelMapper(channels, embed_dim=embed_dim, num_levels=config.num_levels)


def build_position(config: PositionConfig, *, embed_dim: int) -> nn.Module:
    """The position embedding."""
    match config:
        case SinePositionConfig():
            return SinePositionEmbedding(embed_dim)
        case LearnedPositionConfig():
            return LearnedPositionEmbedding(embed_dim, max_cells=config.max_cells)
        case _:
            assert_never(config)


def build_queries(config: ModelConfig, *, num_classes: int) -> LearnedQueries | ProposalQueries:
    """The decoder's start."""
    match config.queries:
        case LearnedQueriesConfig():
            return LearnedQueries(config.queries.num_queries, config.embed_dim)
        case TwoStageQueriesConfig():
            return ProposalQueries(
                config.queries.num_queries,
                num_classes=num_classes,
                embed_dim=config.embed_dim,
                content=config.queries.content,
                base_size=config.queries.base_size,
            )
        case _:
            assert_never(config.queries)


def build_criterion(config: LossConfig) -> SetCriterion:
    """The losses and their matcher."""
    matcher = HungarianMatcher(
        class_cost=config.class_cost,
        l1_cost=config.l1_cost,
        giou_cost=config.giou_cost,
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
    )
    return SetCriterion(
        matcher,
        weights=LossWeights(
            class_=config.class_weight, l1=config.l1_weight, giou=config.giou_weight
        ),
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
        auxiliary=config.auxiliary,
        proposal_repeats=config.proposal_repeats,
    )


def build_dataset(
    config: SplitConfig,
    *,
    name: str,
    label_space: LabelSpace | None = None,
    cache_images: bool = False,
) -> CocoDataset:
    """A set of images.

    Args:
        config: its paths.
        name: "train" or "val", for errors.
        label_space: the categories it must have, if they are known.
        cache_images: keep decoded images in memory.

    Raises:
        ConfigError: a path is not given.
    """
    for key, path in (("images", config.images), ("annotations", config.annotations)):
        if path is None:
            raise ConfigError(f"data.{name}.{key}: must be given, as data.{name}.{key}=PATH")
    assert config.images is not None
    assert config.annotations is not None
    return CocoDataset(
        config.images, config.annotations, label_space=label_space, cache_images=cache_images
    )


def build_train_transform(config: AugmentationConfig) -> Transform:
    """Augmentation and resizing of training images."""
    match config:
        case CocoAugmentationConfig():
            return coco_train_transform(
                short_sides=config.sizes,
                max_size=config.max_size,
                pre_crop_short_sides=config.pre_crop_sizes,
                crop_range=config.crop_sizes,
            )
        case ZoomCropAugmentationConfig():
            jitter = config.color_jitter
            return Compose(
                (
                    RandomZoomCrop(
                        config.size,
                        config.scales,
                        min_visibility=config.min_visibility,
                        around_objects=config.around_objects,
                    ),
                    RandomRotate90(),
                    RandomHorizontalFlip(),
                    RandomSoften(config.soften),
                    ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
                )
            )
        case _:
            assert_never(config)


def build_eval_transform(config: DataConfig) -> Transform:
    """Resizing of images that are evaluated or predicted on."""
    return resize_only(config.eval_size, config.eval_max_size)


def build_sampler(
    config: TrainConfig, *, num_samples: int, rank: int, world_size: int
) -> StepSampler:
    """The order of training samples."""
    match config.sample_order:
        case "global_batches":
            return MicroBatchSampler(
                num_samples,
                total_batch=config.total_batch,
                micro_batch=config.micro_batch,
                rank=rank,
                world_size=world_size,
                seed=config.seed,
            )
        case "official":
            return DistributedOrderSampler(
                num_samples,
                total_batch=config.total_batch,
                micro_batch=config.micro_batch,
                rank=rank,
                world_size=world_size,
            )
        case _:
            assert_never(config.sample_order)


def build_optimizer(config: OptimizerConfig, model: HasParameterRoles) -> Optimizer:
    """The optimiser, with a learning rate for each role of the model's parameters."""
    groups = parameter_groups(
        model,
        lr=config.lr,
        lr_by_role={"backbone": config.lr_backbone, "sampling": config.lr_sampling},
        weight_decay=config.weight_decay,
    )
    match config:
        case AdamWConfig():
            return adamw(groups)
        case SGDConfig():
            return sgd(groups, momentum=config.momentum)
        case _:
            assert_never(config)


def build_schedule(
    config: StepScheduleConfig | CosineScheduleConfig, *, steps_per_epoch: int, total_steps: int
) -> Schedule:
    """The learning rate's factor as a function of the step."""
    match config:
        case StepScheduleConfig():
            return StepSchedule(
                drop_steps=config.drop_epochs * steps_per_epoch, warmup_steps=config.warmup_steps
            )
        case CosineScheduleConfig():
            return CosineSchedule(total_steps=total_steps, warmup_steps=config.warmup_steps)
        case _:
            assert_never(config)
