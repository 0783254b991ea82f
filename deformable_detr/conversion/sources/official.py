"""Names of the official repository, fundamentalvision/Deformable-DETR."""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Block,
    Layout,
    Row,
)
from deformable_detr.conversion.sources.head_names import heads, heads_of_refining_decoder, queries
from deformable_detr.conversion.sources.resnet_names import torchvision_names

# Norms of a decoder layer are numbered in the order in which they are constructed there, in the
# order in which they run here.
OFFICIAL = Layout(
    source="official",
    signature="transformer.level_embed",
    blocks=(
        Block("transformer.level_embed", "memory_builder.level_embed", (Row("", "", WHOLE),)),
        Block(
            "transformer.encoder.layers.{i}",
            "encoder.layers.{i}",
            (
                Row("self_attn", "self_attn", MS_DEFORM_ATTN),
                Row("norm1", "norm1"),
                Row("linear1", "linear1"),
                Row("linear2", "linear2"),
                Row("norm2", "norm2"),
            ),
            each="encoder_layer",
        ),
        Block(
            "transformer.decoder.layers.{i}",
            "decoder.layers.{i}",
            (
                Row("cross_attn", "cross_attn", MS_DEFORM_ATTN),
                Row("norm1", "norm2"),
                Row("self_attn", "self_attn", MULTIHEAD_ATTN),
                Row("norm2", "norm1"),
                Row("linear1", "linear1"),
                Row("linear2", "linear2"),
                Row("norm3", "norm3"),
            ),
            each="decoder_layer",
        ),
        *heads_of_refining_decoder("transformer.decoder"),
        *queries("transformer"),
        *heads(),
        Block("query_embed.weight", "queries.embed", (Row("", "", WHOLE),), when="one_stage"),
        Block(
            "input_proj.{i}",
            "neck",
            (Row("0", "projections.{i}"), Row("1", "norms.{i}")),
            each="level",
        ),
        *torchvision_names("backbone.0.body"),
        Block(
            "backbone.1",
            "memory_builder.position",
            (
                Row("row_embed", "row_embed", ("weight",)),
                Row("col_embed", "column_embed", ("weight",)),
            ),
            when="learned_position",
        ),
    ),
)
