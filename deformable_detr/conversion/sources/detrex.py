"""Names of detrex' projects/deformable_detr, with the ResNet of detectron2.

Read in its public source; detrex cannot be installed beside this package, so that the table is
checked for shapes and for being a bijection only.
"""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Block,
    Layout,
    Row,
)
from deformable_detr.conversion.sources.head_names import heads, heads_of_refining_decoder, queries
from deformable_detr.conversion.sources.resnet_names import detectron2_names

DETREX = Layout(
    source="detrex",
    signature="transformer.level_embeds",
    blocks=(
        *detectron2_names("backbone"),
        Block(
            "neck.convs.{i}",
            "neck",
            (Row("conv", "projections.{j}"), Row("norm", "norms.{j}")),
            each="backbone_level",
        ),
        Block(
            "neck.extra_convs.{i}",
            "neck",
            (Row("conv", "projections.{j}"), Row("norm", "norms.{j}")),
            each="extra_level",
        ),
        Block("transformer.level_embeds", "memory_builder.level_embed", (Row("", "", WHOLE),)),
        Block(
            "transformer.encoder.layers.{i}",
            "encoder.layers.{i}",
            (
                Row("attentions.0", "self_attn", MS_DEFORM_ATTN),
                Row("ffns.0.layers.0.0", "linear1"),
                Row("ffns.0.layers.1", "linear2"),
                Row("norms.0", "norm1"),
                Row("norms.1", "norm2"),
            ),
            each="encoder_layer",
        ),
        Block(
            "transformer.decoder.layers.{i}",
            "decoder.layers.{i}",
            (
                Row("attentions.0.attn", "self_attn", MULTIHEAD_ATTN),
                Row("attentions.1", "cross_attn", MS_DEFORM_ATTN),
                Row("ffns.0.layers.0.0", "linear1"),
                Row("ffns.0.layers.1", "linear2"),
                Row("norms.0", "norm1"),
                Row("norms.1", "norm2"),
                Row("norms.2", "norm3"),
            ),
            each="decoder_layer",
        ),
        *heads_of_refining_decoder("transformer.decoder"),
        *queries("transformer"),
        *heads(),
        Block("query_embedding.weight", "queries.embed", (Row("", "", WHOLE),), when="one_stage"),
    ),
)
