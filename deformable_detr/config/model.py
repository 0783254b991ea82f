"""The detector."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.backbone import BackboneConfig, DeformKernelOptions, ResNetConfig
from deformable_detr.config.base import FrozenModel, Positive, Probability


class ChannelMapperConfig(FrozenModel):
    """1x1 projections, and strided convolutions for levels beyond the backbone's maps."""

    kind: Literal["channel_mapper"] = "channel_mapper"
    num_levels: int = Field(4, ge=1, le=8)
    """Levels of the feature pyramid, at least as many as the backbone has maps."""


class ASFFNeckConfig(FrozenModel):
    """The channel mapper, and adaptively spatial feature fusion (ASFF) of its levels after it."""

    kind: Literal["asff"] = "asff"
    num_levels: int = Field(4, ge=2, le=8)
    """Levels of the feature pyramid, at least as many as the backbone has maps."""

    mask_padding: bool = False
    """Set padding to zero before levels are resized, so that nothing of it comes into other
    cells."""

    rfb: bool = False
    """Compute the fusion weights from 8 channels of each level, not 16, as the published code does
    to save memory."""

    norm: Literal["group", "batch"] = "group"
    """Norm of the fusion's convolutions; `batch` is for large micro-batches."""

    activation: Literal["leaky_relu", "silu", "relu6"] = "leaky_relu"
    """Activation of the fusion's convolutions; `relu6` needs `init: uniform`."""

    init: Literal["own", "uniform"] = "own"
    """`own` starts as the channel mapper alone, `uniform` as the published code."""

    compress_equal: bool = True
    """Let coarser levels go through a 1x1 convolution before they are resized."""

    logit_activation: bool = False
    """Let the logits of the fusion weights have batch norm and SiLU: only for weights of a
    published YOLOv5 variant, with `init: uniform`."""


class DeformKernelNeckConfig(DeformKernelOptions):
    """The channel mapper, and a residual of depthwise deformable kernels on each level after it.

    Starts as the channel mapper alone.
    """

    kind: Literal["deform_kernel"] = "deform_kernel"
    num_levels: int = Field(4, ge=1, le=8)
    """Levels of the feature pyramid, at least as many as the backbone has maps."""

    scope_size: int = Field(4, ge=3)
    """Side of the stored kernel, from which 3x3 taps are read."""


NeckConfig = Annotated[
    ChannelMapperConfig | ASFFNeckConfig | DeformKernelNeckConfig, Field(discriminator="kind")
]


class SinePositionConfig(FrozenModel):
    """Fixed sines of the place within the image."""

    kind: Literal["sine"] = "sine"


class LearnedPositionConfig(FrozenModel):
    """Learned embeddings of rows and columns."""

    kind: Literal["learned"] = "learned"
    max_cells: Positive = 50
    """Most rows or columns that a feature map may have; 50 in the official code."""


PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]


class AttentionConfig(FrozenModel):
    """What attention in encoder and decoder has in common."""

    num_heads: Positive = 8
    """Heads of every attention, a divisor of `embed_dim`."""

    backend: Literal["auto", "native", "reference"] = "auto"
    """Back-end of deformable attention: `native` is the compiled operator, `reference` is plain
    PyTorch, `auto` is `native` where it is available."""


class LayerStackConfig(FrozenModel):
    """Settings of encoder and decoder."""

    num_layers: int = Field(6, ge=0)
    """Number of layers."""

    ffn_dim: Positive = 1024
    """Hidden width of the feed-forward networks."""

    dropout: Probability = 0.1
    """Dropout probability."""

    num_points: Positive = 4
    """Sampling points of each head on each level."""


class EncoderConfig(LayerStackConfig):
    """Layers of self-attention over the pyramid's cells."""


class DecoderConfig(LayerStackConfig):
    """Layers that turn queries into boxes and classes."""

    num_layers: Positive = 6
    """Number of layers."""

    box_refinement: bool = False
    """Iterative box refinement: every layer corrects the boxes of the one before. Two-stage
    queries need it."""


class LearnedQueriesConfig(FrozenModel):
    """The same learned queries for every image."""

    kind: Literal["learned"] = "learned"
    num_queries: Positive = 300
    """Number of queries per image."""


class TwoStageQueriesConfig(FrozenModel):
    """Queries from the best proposals of the encoder."""

    kind: Literal["two_stage"] = "two_stage"
    num_queries: Positive = 300
    """Number of queries per image."""

    content: Literal["box", "memory"] = "box"
    """Content of a query: made from the proposal's `box`, as in the paper, or the features of its
    token in the `memory`."""

    base_size: float = Field(0.05, gt=0.01, lt=0.99)
    """Width and height that boxes of the finest level start from, as a share of the image; they
    double from level to level."""


QueriesConfig = Annotated[LearnedQueriesConfig | TwoStageQueriesConfig, Field(discriminator="kind")]


class MimickingConfig(FrozenModel):
    """Feature mimicking, after Deformable ConvNets v2."""

    max_regions: Positive = 32
    """Most objects per image that are cropped; chosen at random where there are more."""

    crop_size_px: Positive = 224
    """Side in pixels that crops are resized to."""


class ModelConfig(FrozenModel):
    """The detector."""

    embed_dim: int = Field(256, ge=64, multiple_of=32)
    """Width of the feature pyramid, the encoder's tokens and the decoder's queries."""

    backbone: BackboneConfig = ResNetConfig()
    """The network that makes feature maps of an image."""

    neck: NeckConfig = ChannelMapperConfig()
    """What makes a feature pyramid of the backbone's maps."""

    position: PositionConfig = SinePositionConfig()
    """Position embedding of the pyramid's cells."""

    attention: AttentionConfig = AttentionConfig()
    """Attention in encoder and decoder."""

    encoder: EncoderConfig = EncoderConfig()
    """The encoder."""

    queries: QueriesConfig = LearnedQueriesConfig()
    """What the decoder starts from."""

    decoder: DecoderConfig = DecoderConfig()
    """The decoder."""

    mimicking: MimickingConfig | None = None
    """Feature mimicking: an auxiliary loss in training, on objects cut out of their image. Null
    for none, `{}` for the defaults."""

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
