"""Names of mmdetection 3.x' DeformableDETR.

Read in its public source; mmdetection cannot be installed beside this package, so that the table
is checked for shapes and for being a bijection only.
"""

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    MULTIHEAD_ATTN,
    WHOLE,
    Block,
    Layout,
    Row,
)
from deformable_detr.conversion.sources.head_names import heads
from deformable_detr.conversion.sources.resnet_names import torchvision_names

# A sequence of linear layers with a ReLU after each but the last.
_BOX_HEAD = (
    Row("0", "mlp.layers.0"),
    Row("2", "mlp.layers.1"),
    Row("4", "mlp.layers.2"),
)
# Its convolutions have no bias before a norm, unless the neck is configured with `bias=True`.
_LEVEL = (
    Row("conv", "projections.{j}", ("weight",)),
    Row("conv", "projections.{j}", ("bias",), zero_if_absent=True),
    Row("gn", "norms.{j}"),
)

MMDETECTION = Layout(
    source="mmdet",
    signature="bbox_head.cls_branches.0.weight",
    blocks=(
        Block("level_embed", "memory_builder.level_embed", (Row("", "", WHOLE),)),
        *torchvision_names("backbone"),
        Block("neck.convs.{i}", "neck", _LEVEL, each="backbone_level"),
        Block("neck.extra_convs.{i}", "neck", _LEVEL, each="extra_level"),
        *heads("bbox_head.cls_branches", "bbox_head.reg_branches", box_rows=_BOX_HEAD),
        Block(
            "encoder.layers.{i}",
            "encoder.layers.{i}",
            (
                Row("self_attn", "self_attn", MS_DEFORM_ATTN),
                Row("ffn.layers.0.0", "linear1"),
                Row("ffn.layers.1", "linear2"),
                Row("norms.0", "norm1"),
                Row("norms.1", "norm2"),
            ),
            each="encoder_layer",
        ),
        Block(
            "decoder.layers.{i}",
            "decoder.layers.{i}",
            (
                Row("self_attn.attn", "self_attn", MULTIHEAD_ATTN),
                Row("cross_attn", "cross_attn", MS_DEFORM_ATTN),
                Row("ffn.layers.0.0", "linear1"),
                Row("ffn.layers.1", "linear2"),
                Row("norms.0", "norm1"),
                Row("norms.1", "norm2"),
                Row("norms.2", "norm3"),
            ),
            each="decoder_layer",
        ),
        Block("query_embedding.weight", "queries.embed", (Row("", "", WHOLE),), when="one_stage"),
        Block("memory_trans_fc", "queries.memory_proj", when="two_stage"),
        Block("memory_trans_norm", "queries.memory_norm", when="two_stage"),
        Block("pos_trans_fc", "queries.query_proj", when="two_stage"),
        Block("pos_trans_norm", "queries.query_norm", when="two_stage"),
        Block("reference_points_fc", "queries.reference_points", when="one_stage"),
    ),
)
