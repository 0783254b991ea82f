"""The detector."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.backbone import BackboneConfig, DeformKernelOptions, ResNetConfig
from deformable_detr.config.base import FrozenModel, Positive, Probability


class ChannelMapperConfig(FrozenModel):
    """1x1 projections, and strided convolutions for levels beyond the backbone's maps."""

    kind: Literal["channel_mapper"] = "channel_mapper"
    num_levels: int = Field(4, ge=1, le=8)


class ASFFNeckConfig(FrozenModel):
    """The channel mapper, and adaptively spatial feature fusion of its levels after it.

    With `init: own` it starts as the channel mapper alone, with `uniform` as the published code.
    With `mask_padding` nothing of the padding comes into other cells when levels are resized.
    `rfb` halves the width of the weights; without `compress_equal` coarser levels are resized as
    they are. `logit_activation` is for weights of a published YOLOv5 variant; see `LevelFusion`.
    """

    kind: Literal["asff"] = "asff"
    num_levels: int = Field(4, ge=2, le=8)
    mask_padding: bool = False
    rfb: bool = False
    norm: Literal["group", "batch"] = "group"
    activation: Literal["leaky_relu", "silu", "relu6"] = "leaky_relu"
    init: Literal["own", "uniform"] = "own"
    compress_equal: bool = True
    logit_activation: bool = False


class DeformKernelNeckConfig(DeformKernelOptions):
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
