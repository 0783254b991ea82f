"""Names of the official repository, fundamentalvision/Deformable-DETR."""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Layout,
    NameBlock,
    NameRow,
)
from deformable_detr.conversion.sources.head_names import heads, heads_of_refining_decoder, queries
from deformable_detr.conversion.sources.resnet_names import torchvision_names

# The official code numbers the norms of a decoder layer in order of construction, this package in
# order of execution.
TRANSFORMER_LAYERS = (
    NameBlock(
        "transformer.encoder.layers.{i}",
        "encoder.layers.{i}",
        (
            NameRow("self_attn", "self_attn", MS_DEFORM_ATTN),
            NameRow("norm1", "norm1"),
            NameRow("linear1", "linear1"),
            NameRow("linear2", "linear2"),
            NameRow("norm2", "norm2"),
        ),
        each="encoder_layer",
    ),
    NameBlock(
        "transformer.decoder.layers.{i}",
        "decoder.layers.{i}",
        (
            NameRow("cross_attn", "cross_attn", MS_DEFORM_ATTN),
            NameRow("norm1", "norm2"),
            NameRow("self_attn", "self_attn", MULTIHEAD_ATTN),
            NameRow("norm2", "norm1"),
            NameRow("linear1", "linear1"),
            NameRow("linear2", "linear2"),
            NameRow("norm3", "norm3"),
        ),
        each="decoder_layer",
    ),
)
NECK = NameBlock(
    "input_proj.{i}",
    "neck",
    (NameRow("0", "projections.{i}"), NameRow("1", "norms.{i}")),
    each="level",
)
OFFICIAL = Layout(
    source="official",
    signature=("transformer.level_embed",),
    blocks=(
        NameBlock(
            "transformer.level_embed", "memory_builder.level_embed", (NameRow("", "", WHOLE),)
        ),
        *TRANSFORMER_LAYERS,
        *heads_of_refining_decoder("transformer.decoder"),
        *queries("transformer"),
        *heads(),
        NameBlock(
            "query_embed.weight", "queries.embed", (NameRow("", "", WHOLE),), when="one_stage"
        ),
        NECK,
        *torchvision_names("backbone.0.body"),
        NameBlock(
            "backbone.1",
            "memory_builder.position",
            (
                NameRow("row_embed", "row_embed", ("weight",)),
                NameRow("col_embed", "column_embed", ("weight",)),
            ),
            when="learned_position",
        ),
    ),
)
