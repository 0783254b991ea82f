"""Names of detrex' projects/deformable_detr, with the ResNet of detectron2.

Taken from its public source; detrex cannot be installed alongside this package, so the table is
only checked for shapes and for being a bijection.
"""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Layout,
    NameBlock,
    NameRow,
)
from deformable_detr.conversion.sources.head_names import heads, heads_of_refining_decoder, queries
from deformable_detr.conversion.sources.resnet_names import detectron2_names

BACKBONE_TO_DECODER = (
    *detectron2_names("backbone"),
    NameBlock(
        "neck.convs.{i}",
        "neck",
        (NameRow("conv", "projections.{j}"), NameRow("norm", "norms.{j}")),
        each="backbone_level",
    ),
    NameBlock(
        "neck.extra_convs.{i}",
        "neck",
        (NameRow("conv", "projections.{j}"), NameRow("norm", "norms.{j}")),
        each="extra_level",
    ),
    NameBlock("transformer.level_embeds", "memory_builder.level_embed", (NameRow("", "", WHOLE),)),
    NameBlock(
        "transformer.encoder.layers.{i}",
        "encoder.layers.{i}",
        (
            NameRow("attentions.0", "self_attn", MS_DEFORM_ATTN),
            NameRow("ffns.0.layers.0.0", "linear1"),
            NameRow("ffns.0.layers.1", "linear2"),
            NameRow("norms.0", "norm1"),
            NameRow("norms.1", "norm2"),
        ),
        each="encoder_layer",
    ),
    NameBlock(
        "transformer.decoder.layers.{i}",
        "decoder.layers.{i}",
        (
            NameRow("attentions.0.attn", "self_attn", MULTIHEAD_ATTN),
            NameRow("attentions.1", "cross_attn", MS_DEFORM_ATTN),
            NameRow("ffns.0.layers.0.0", "linear1"),
            NameRow("ffns.0.layers.1", "linear2"),
            NameRow("norms.0", "norm1"),
            NameRow("norms.1", "norm2"),
            NameRow("norms.2", "norm3"),
        ),
        each="decoder_layer",
    ),
)
DETREX = Layout(
    source="detrex",
    signature=("transformer.level_embeds",),
    blocks=(
        *BACKBONE_TO_DECODER,
        *heads_of_refining_decoder("transformer.decoder"),
        *queries("transformer"),
        *heads(),
        NameBlock(
            "query_embedding.weight", "queries.embed", (NameRow("", "", WHOLE),), when="one_stage"
        ),
    ),
)
