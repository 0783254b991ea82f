"""What a run is made of: one frozen pydantic model a part, with the paper's values as defaults.

`config_io` reads these from YAML, `build` turns them into objects. Nothing below `build` sees
them. Sizes are in pixels, learning rates belong to the total batch.

Every setting has a default, and a new one gets the default under which a config without it means
what it meant before: checkpoints hold configs, and old ones stay readable.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Strides = Annotated[tuple[Positive, ...], Field(min_length=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
PixelRange = tuple[Positive, Positive]


class ConfigError(ValueError):
    """A config file or an override is wrong; the message starts with the key's path."""


class FrozenModel(BaseModel):
    """Exact types, no unknown keys, no change after construction."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


def _require_increasing(name: str, pair: tuple[float, float]) -> None:
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be (low, high), got {list(pair)}")


class PlainConvConfig(FrozenModel):
    """The backbone's own convolutions."""

    kind: Literal["plain"] = "plain"


class ReplacedConvConfig(FrozenModel):
    """Which convolutions are replaced: those of odd size above 1 in trained blocks of `strides`."""

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


class ACBlockConfig(ReplacedConvConfig):
    """Asymmetric convolution blocks; the statistics of their norms are fixed as `norm` says."""

    kind: Literal["ac_block"] = "ac_block"


class DiverseBranchConfig(ReplacedConvConfig):
    """Diverse branch blocks; norms as in `ACBlockConfig`."""

    kind: Literal["diverse_branch"] = "diverse_branch"


class DeformKernelConfig(ReplacedConvConfig):
    """Deformable kernels, for depthwise convolutions.

    An even `scope_size` starts as the plain kernel too, but is sensitive to the first rotations.
    """

    kind: Literal["deform_kernel"] = "deform_kernel"
    scope_size: Positive = 5
    rotation_groups: Positive = 1
    image_offsets: bool = False


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
    """What every backbone has.

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


class ChannelMapperConfig(FrozenModel):
    """1x1 projections, and strided convolutions for levels beyond the backbone's maps."""

    kind: Literal["channel_mapper"] = "channel_mapper"
    num_levels: int = Field(4, ge=1, le=8)


class ASFFNeckConfig(FrozenModel):
    """The channel mapper, and adaptively spatial feature fusion of its levels after it.

    Starts as the channel mapper alone. With `mask_padding` nothing of the padding comes into other
    cells when levels are resized.
    """

    kind: Literal["asff"] = "asff"
    num_levels: int = Field(4, ge=2, le=8)
    mask_padding: bool = False


class DeformKernelNeckConfig(FrozenModel):
    """The channel mapper, and a residual of depthwise deformable kernels on each level after it.

    Starts as the channel mapper alone.
    """

    kind: Literal["deform_kernel"] = "deform_kernel"
    num_levels: int = Field(4, ge=1, le=8)
    scope_size: int = Field(4, ge=3)


NeckConfig = Annotated[
    ChannelMapperConfig | ASFFNeckConfig | DeformKernelNeckConfig, Field(discriminator="kind")
]


class SinePositionConfig(FrozenModel):
    """Fixed sines of the place within the image."""

    kind: Literal["sine"] = "sine"


class LearnedPositionConfig(FrozenModel):
    """Learned rows and columns; no map may have more than `max_cells` of either."""

    kind: Literal["learned"] = "learned"
    max_cells: Positive = 50


PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]


class AttentionConfig(FrozenModel):
    """Heads of every attention, and the back-end of the deformable ones."""

    num_heads: Positive = 8
    backend: Literal["auto", "native", "reference"] = "auto"


class EncoderConfig(FrozenModel):
    """The encoder stack."""

    num_layers: int = Field(6, ge=0)
    ffn_dim: Positive = 1024
    dropout: Probability = 0.1
    num_points: Positive = 4


class DecoderConfig(FrozenModel):
    """The decoder stack."""

    num_layers: Positive = 6
    ffn_dim: Positive = 1024
    dropout: Probability = 0.1
    num_points: Positive = 4
    box_refinement: bool = False


class LearnedQueriesConfig(FrozenModel):
    """The same learned queries for every image."""

    kind: Literal["learned"] = "learned"
    num_queries: Positive = 300


class TwoStageQueriesConfig(FrozenModel):
    """Queries from the best proposals of the encoder.

    Their content is made from the proposal's box, as in the paper, or is the token's features.
    Boxes of the finest level start `base_size` of the image wide and high.
    """

    kind: Literal["two_stage"] = "two_stage"
    num_queries: Positive = 300
    content: Literal["box", "memory"] = "box"
    base_size: float = Field(0.05, gt=0.01, lt=0.99)


QueriesConfig = Annotated[LearnedQueriesConfig | TwoStageQueriesConfig, Field(discriminator="kind")]


class MimickingConfig(FrozenModel):
    """Feature mimicking: an auxiliary loss on crops of at most `max_regions` objects an image."""

    max_regions: Positive = 32
    crop_size_px: Positive = 224


class ModelConfig(FrozenModel):
    """The detector. The number of classes is not here: it comes from the data's categories."""

    embed_dim: int = Field(256, ge=64, multiple_of=32)
    backbone: BackboneConfig = ResNetConfig()
    neck: NeckConfig = ChannelMapperConfig()
    position: PositionConfig = SinePositionConfig()
    attention: AttentionConfig = AttentionConfig()
    encoder: EncoderConfig = EncoderConfig()
    queries: QueriesConfig = LearnedQueriesConfig()
    decoder: DecoderConfig = DecoderConfig()
    mimicking: MimickingConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.embed_dim % self.attention.num_heads:
            raise ValueError(
                "embed_dim must be divisible by attention.num_heads, "
                f"got {self.embed_dim} and {self.attention.num_heads}"
            )
        if self.neck.num_levels < len(self.backbone.out_strides):
            raise ValueError(
                f"neck.num_levels must be at least the {len(self.backbone.out_strides)} "
                f"backbone.out_strides, got {self.neck.num_levels}"
            )
        if self.queries.kind == "two_stage" and not self.decoder.box_refinement:
            raise ValueError("decoder.box_refinement must be true for two_stage queries, got false")
        if self.mimicking is not None and self.backbone.norm != "frozen_batch_norm":
            raise ValueError(
                "backbone.norm must be frozen_batch_norm with mimicking, whose crops would enter "
                f"the statistics, got {self.backbone.norm}"
            )
        return self


class LossConfig(FrozenModel):
    """Matching costs, loss weights and the focal loss, which both share."""

    class_cost: float = Field(2.0, ge=0)
    l1_cost: float = Field(5.0, ge=0)
    giou_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(2.0, ge=0)
    l1_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)
    focal_alpha: float = Field(0.25, gt=0, lt=1)
    focal_gamma: float = Field(2.0, ge=0)
    auxiliary: bool = True


class SplitConfig(FrozenModel):
    """A set of images in COCO format: the folder and the annotation file."""

    images: Path | None = None
    annotations: Path | None = None


class CocoAugmentationConfig(FrozenModel):
    """The paper's: flip, then a random size, half of the time after a random crop."""

    kind: Literal["coco"] = "coco"
    sizes: tuple[Positive, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    max_size: Positive = 1333
    pre_crop_sizes: tuple[Positive, ...] = (400, 500, 600)
    crop_sizes: PixelRange = (384, 600)


class ZoomCropAugmentationConfig(FrozenModel):
    """For photos without an up: square crops at random zoom, any of their eight orientations.

    A crop of `size * u` pixels, u uniform in `scales`, is resized to `size`; with
    `around_objects` it holds at least one object, where there is one. A cut box stays if
    `min_visibility` of its area is inside. Colours change by at most the share `color_jitter`, and
    the share `soften` of the crops is made as soft as a coarser camera would show them.
    """

    kind: Literal["zoom_crop"] = "zoom_crop"
    size: Positive
    scales: Range = (0.5, 1.0)
    around_objects: bool = False
    min_visibility: float = Field(0.4, ge=0, le=1)
    color_jitter: Probability = 0.0
    soften: Probability = 0.0

    @model_validator(mode="after")
    def _check(self) -> "ZoomCropAugmentationConfig":
        _require_increasing("scales", self.scales)
        return self


AugmentationConfig = Annotated[
    CocoAugmentationConfig | ZoomCropAugmentationConfig, Field(discriminator="kind")
]


class DataConfig(FrozenModel):
    """Where images come from and what the model sees of them.

    Evaluation and prediction resize the shorter side to `eval_size`, the longer to at most
    `eval_max_size`. An epoch goes `repeats` times through the training set, which matters where
    it holds few large photos. `cache_images` keeps decoded photos in memory.
    """

    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    augmentation: AugmentationConfig = CocoAugmentationConfig()
    repeats: Positive = 1
    eval_size: Positive = 800
    eval_max_size: Positive = 1333
    num_workers: int = Field(2, ge=0)
    cache_images: bool = False


class AdamWConfig(FrozenModel):
    """AdamW, with the learning rates of each role."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(2e-4, gt=0)
    lr_backbone: float = Field(2e-5, gt=0)
    lr_sampling: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)


class SGDConfig(FrozenModel):
    """SGD with momentum, with the learning rates of each role."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(2e-4, gt=0)
    lr_backbone: float = Field(2e-5, gt=0)
    lr_sampling: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    momentum: Probability = 0.9


OptimizerConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind")]


class StepScheduleConfig(FrozenModel):
    """The rate falls to a tenth after every `drop_epochs`."""

    kind: Literal["step"] = "step"
    drop_epochs: Positive = 40
    warmup_steps: int = Field(0, ge=0)


class CosineScheduleConfig(FrozenModel):
    """The rate falls to zero along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)


ScheduleConfig = Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")]


class TrainConfig(FrozenModel):
    """The loop.

    Every step sees `total_batch` images, whatever the number of processes, in forward passes of
    `micro_batch` images. Training ends after `epochs`, or after `max_steps` if that is sooner.
    `clip_norm` 0 does not clip. `ema_decay` 0 keeps no moving average.
    """

    epochs: Positive = 50
    max_steps: Positive | None = None
    total_batch: Positive = 32
    micro_batch: Positive = 2
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = StepScheduleConfig()
    clip_norm: float = Field(0.1, ge=0)
    ema_decay: Probability = 0.0
    seed: int = Field(42, ge=0)
    sample_order: Literal["global_batches", "official"] = "global_batches"
    log_every: Positive = 10
    eval_every_epochs: Positive = 1
    validation_loss: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.total_batch % self.micro_batch:
            raise ValueError(
                "total_batch must be a multiple of micro_batch, "
                f"got {self.total_batch} and {self.micro_batch}"
            )
        return self


class RunConfig(FrozenModel):
    """A whole run.

    `compat: official` computes what the official code computes, wherever this package does
    otherwise on purpose: labels are raw category ids (91 classes for COCO), the matching cost has
    alpha 0.25 whatever `loss.focal_alpha` is, proposals have no weight without auxiliary losses,
    and samples come in the order of `train.sample_order: official`.
    """

    compat: Literal["none", "official"] = "none"
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
