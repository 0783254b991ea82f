"""Names of mmdetection 3.x' DeformableDETR.

Taken from its public source; mmdetection cannot be installed alongside this package, so the table
is only checked for shapes and for being a bijection.
"""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Layout,
    NameBlock,
    NameRow,
)
from deformable_detr.conversion.sources.head_names import heads
from deformable_detr.conversion.sources.resnet_names import torchvision_names

# Linear layers with a ReLU after each except the last.
_BOX_HEAD = (
    NameRow("0", "mlp.layers.0"),
    NameRow("2", "mlp.layers.1"),
    NameRow("4", "mlp.layers.2"),
)
# Its convolutions before a norm have no bias, unless the neck is configured with `bias=True`.
_LEVEL = (
    NameRow("conv", "projections.{j}", ("weight",)),
    NameRow("conv", "projections.{j}", ("bias",), zero_if_absent=True),
    NameRow("gn", "norms.{j}"),
)
BACKBONE_TO_DECODER = (
    NameBlock("level_embed", "memory_builder.level_embed", (NameRow("", "", WHOLE),)),
    *torchvision_names("backbone"),
    NameBlock("neck.convs.{i}", "neck", _LEVEL, each="backbone_level"),
    NameBlock("neck.extra_convs.{i}", "neck", _LEVEL, each="extra_level"),
    *heads("bbox_head.cls_branches", "bbox_head.reg_branches", box_rows=_BOX_HEAD),
    NameBlock(
        "encoder.layers.{i}",
        "encoder.layers.{i}",
        (
            NameRow("self_attn", "self_attn", MS_DEFORM_ATTN),
            NameRow("ffn.layers.0.0", "linear1"),
            NameRow("ffn.layers.1", "linear2"),
            NameRow("norms.0", "norm1"),
            NameRow("norms.1", "norm2"),
        ),
        each="encoder_layer",
    ),
    NameBlock(
        "decoder.layers.{i}",
        "decoder.layers.{i}",
        (
            NameRow("self_attn.attn", "self_attn", MULTIHEAD_ATTN),
            NameRow("cross_attn", "cross_attn", MS_DEFORM_ATTN),
            NameRow("ffn.layers.0.0", "linear1"),
            NameRow("ffn.layers.1", "linear2"),
            NameRow("norms.0", "norm1"),
            NameRow("norms.1", "norm2"),
            NameRow("norms.2", "norm3"),
        ),
        each="decoder_layer",
    ),
)
MMDETECTION = Layout(
    source="mmdet",
    signature=("bbox_head.cls_branches.0.weight",),
    blocks=(
        *BACKBONE_TO_DECODER,
        NameBlock(
            "query_embedding.weight", "queries.embed", (NameRow("", "", WHOLE),), when="one_stage"
        ),
        NameBlock("memory_trans_fc", "queries.memory_proj", when="two_stage"),
        NameBlock("memory_trans_norm", "queries.memory_norm", when="two_stage"),
        NameBlock("pos_trans_fc", "queries.query_proj", when="two_stage"),
        NameBlock("pos_trans_norm", "queries.query_norm", when="two_stage"),
        NameBlock("reference_points_fc", "queries.reference_points", when="one_stage"),
    ),
)
