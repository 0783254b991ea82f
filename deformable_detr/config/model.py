"""Settings of the detector."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.backbone import BackboneConfig, DeformKernelOptions, ResNetConfig
from deformable_detr.config.base import FrozenModel, Probability


class ChannelMapperConfig(FrozenModel):
    """1x1 projections of the backbone's maps, and strided convolutions for further levels."""

    kind: Literal["channel_mapper"] = "channel_mapper"
    num_levels: int = Field(4, ge=1, le=8)
    """Number of levels of the feature pyramid, at least the number of backbone maps."""


class ASFFNeckConfig(FrozenModel):
    """Channel mapper followed by adaptively spatial feature fusion (ASFF) of its levels."""

    kind: Literal["asff"] = "asff"
    num_levels: int = Field(4, ge=2, le=8)
    """Number of levels of the feature pyramid, at least the number of backbone maps."""

    mask_padding: bool = False
    """Set padding to zero before levels are resized, so that it does not leak into other cells."""

    rfb: bool = False
    """Compute the fusion weights from 8 channels per level instead of 16, as the published code
    does to save memory."""

    norm: Literal["group", "batch"] = "group"
    """Norm of the fusion's convolutions; `batch` is for large micro-batches."""

    activation: Literal["leaky_relu", "silu", "relu6"] = "leaky_relu"
    """Activation of the fusion's convolutions; `relu6` needs `init: uniform`."""

    init: Literal["own", "uniform"] = "own"
    """`own` starts as the channel mapper alone, `uniform` as the published code."""

    compress_equal: bool = True
    """Apply a 1x1 convolution to coarser levels before they are resized."""

    logit_activation: bool = False
    """Apply batch norm and SiLU to the logits of the fusion weights; only for weights of a
    published YOLOv5 variant, with `init: uniform`."""


class DeformKernelNeckConfig(DeformKernelOptions):
    """Channel mapper followed by a residual of depthwise deformable kernels on each level.

    Starts as the channel mapper alone.
    """

    kind: Literal["deform_kernel"] = "deform_kernel"
    num_levels: int = Field(4, ge=1, le=8)
    """Number of levels of the feature pyramid, at least the number of backbone maps."""

    scope_size: int = Field(4, ge=3, le=31)
    """Side length of the stored kernel, from which 3x3 taps are sampled."""


NeckConfig = Annotated[
    ChannelMapperConfig | ASFFNeckConfig | DeformKernelNeckConfig, Field(discriminator="kind")
]


class SinePositionConfig(FrozenModel):
    """Fixed sine embeddings of the position within the image."""

    kind: Literal["sine"] = "sine"
    temperature: float = Field(10000.0, ge=1, le=1e6)
    """Ratio of the longest to the shortest wavelength; 20 in the official DINO."""

    offset: float = Field(-0.5, ge=-1, le=1)
    """Number of cells that is added to the count of cells, which begins at 1; 0 in the official
    DINO."""


class LearnedPositionConfig(FrozenModel):
    """Learned embeddings of rows and columns."""

    kind: Literal["learned"] = "learned"
    max_cells: int = Field(50, gt=0, le=16384)
    """Maximum number of rows or columns of a feature map; 50 in the official code."""


PositionConfig = Annotated[SinePositionConfig | LearnedPositionConfig, Field(discriminator="kind")]


class AttentionConfig(FrozenModel):
    """Settings of attention in encoder and decoder."""

    num_heads: int = Field(8, gt=0, le=256)
    """Number of attention heads; must divide `embed_dim`."""

    backend: Literal["auto", "native", "reference"] = "auto"
    """Back-end of deformable attention: `native` is the compiled operator, `reference` is plain
    PyTorch, `auto` is `native` where it is available."""


class LayerStackConfig(FrozenModel):
    """Settings shared by encoder and decoder."""

    num_layers: int = Field(6, ge=0, le=64)
    """Number of layers."""

    ffn_dim: int = Field(1024, gt=0, le=65536)
    """Hidden width of the feed-forward networks."""

    dropout: Probability = 0.1
    """Dropout probability."""

    num_points: int = Field(4, gt=0, le=64)
    """Number of sampling points per head and level."""


class EncoderConfig(LayerStackConfig):
    """Encoder: layers of self-attention over the cells of the pyramid."""


class DecoderConfig(LayerStackConfig):
    """Decoder: layers that turn queries into boxes and classes."""

    num_layers: int = Field(6, gt=0, le=64)
    """Number of layers."""

    box_refinement: bool = False
    """Iterative box refinement: each layer refines the boxes of the previous one. Required by
    two-stage queries."""

    position: Literal["query", "reference"] = "query"
    """Source of the query positions: `query` has them from the queries, the same in all layers;
    `reference` computes them from the references anew in each layer, as in DINO, where the heads
    then read a common norm of the layers' outputs. `reference` needs two-stage queries."""

    look_forward_twice: bool = False
    """Let the loss of a layer also train the box head of the layer before, as in DINO. Needs
    `box_refinement`."""

    share_heads: bool = False
    """Use the same heads in all layers. Without `box_refinement`, they always are."""


class LearnedQueriesConfig(FrozenModel):
    """Learned queries, the same for all images."""

    kind: Literal["learned"] = "learned"
    num_queries: int = Field(300, gt=0, le=10_000)
    """Number of queries per image."""


class TwoStageQueriesConfig(FrozenModel):
    """Queries made from the best proposals of the encoder."""

    kind: Literal["two_stage"] = "two_stage"
    num_queries: int = Field(300, gt=0, le=10_000)
    """Number of queries per image."""

    content: Literal["box", "memory", "learned"] = "box"
    """Content of a query: `box` embeds the proposal's box, as in the paper; `memory` takes the
    features of its encoder token; `learned` has a vector for each rank, as in DINO."""

    ranking: Literal["objectness", "class"] = "objectness"
    """Score that ranks the proposals: `objectness` is trained on all of them to find objects of any
    class, as in the paper; `class` is the highest of the class scores, which are trained on the
    best proposals, as in DINO."""

    base_size: float = Field(0.05, gt=0.01, lt=0.99)
    """Width and height of the initial boxes of the finest level, as a fraction of the image; they
    double from level to level."""

    center_offset: Literal["image", "box"] = "image"
    """Unit of the offsets of box centers, of proposals and decoder: `image` adds them in logit
    space, as in the paper; `box` multiplies them by the size of the reference box before, as in
    R-CNN, which finds small objects more precisely after few steps."""


QueriesConfig = Annotated[LearnedQueriesConfig | TwoStageQueriesConfig, Field(discriminator="kind")]


class MimickingConfig(FrozenModel):
    """Feature mimicking of Deformable ConvNets v2."""

    max_regions: int = Field(32, gt=0, le=1024)
    """Maximum number of cropped objects per image; a random choice if there are more."""

    crop_size_px: int = Field(224, gt=0, le=2048)
    """Side length in pixels to which crops are resized."""


class DenoisingConfig(FrozenModel):
    """Contrastive denoising of DINO.

    In training, additional queries start from noisy copies of the objects: near ones, from which
    the objects are restored, and far ones, which are rejected.
    """

    num_queries: int = Field(100, gt=0, le=10_000)
    """Number of near copies per image, in groups of one for each object; there are as many far
    ones. An image with more objects gets a random choice of them."""

    label_noise: Probability = 0.5
    """Twice the probability that a copy gets a random class."""

    box_noise: float = Field(1.0, gt=0, le=2)
    """Maximum shift of a corner of a near copy, in halves of the box's width and height; far copies
    are shifted by up to twice as much, at least by this."""


class ModelConfig(FrozenModel):
    """The detector."""

    embed_dim: int = Field(256, ge=64, le=8192, multiple_of=32)
    """Width of the feature pyramid, the encoder's tokens and the decoder's queries."""

    backbone: BackboneConfig = ResNetConfig()
    """Network that computes feature maps of an image."""

    neck: NeckConfig = ChannelMapperConfig()
    """Module that builds the feature pyramid from the backbone's maps."""

    position: PositionConfig = SinePositionConfig()
    """Position embedding of the cells of the pyramid."""

    attention: AttentionConfig = AttentionConfig()
    """Attention in encoder and decoder."""

    encoder: EncoderConfig = EncoderConfig()
    """The encoder."""

    queries: QueriesConfig = LearnedQueriesConfig()
    """Initial queries of the decoder."""

    decoder: DecoderConfig = DecoderConfig()
    """The decoder."""

    denoising: DenoisingConfig | None = None
    """Contrastive denoising, which stabilizes the matching of two-stage models in training. Null
    for none, `{}` for the defaults."""

    mimicking: MimickingConfig | None = None
    """Feature mimicking: an auxiliary training loss on objects cropped from the image. Null for
    none, `{}` for the defaults."""

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
        if self.decoder.look_forward_twice and not self.decoder.box_refinement:
            raise ValueError(
                "decoder.box_refinement must be true for decoder.look_forward_twice, got false"
            )
        if self.queries.kind != "two_stage":
            # Their references are points, which say nothing of a size.
            if self.decoder.position == "reference":
                raise ValueError(
                    "queries.kind must be two_stage for decoder.position: reference, got "
                    f"{self.queries.kind}"
                )
            if self.denoising is not None:
                raise ValueError(
                    f"queries.kind must be two_stage for denoising, got {self.queries.kind}"
                )
        if self.mimicking is not None and self.backbone.norm != "frozen_batch_norm":
            raise ValueError(
                "backbone.norm must be frozen_batch_norm with mimicking, whose crops would enter "
                f"the statistics, got {self.backbone.norm}"
            )
        return self
