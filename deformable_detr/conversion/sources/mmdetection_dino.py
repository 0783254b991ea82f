"""Names of mmdetection 3.x' DINO.

Taken from its public source, as those of its DeformableDETR.
"""

from deformable_detr.conversion.layout import WHOLE, Layout, NameBlock, NameRow
from deformable_detr.conversion.sources import label_rows
from deformable_detr.conversion.sources.head_names import dino_decoder
from deformable_detr.conversion.sources.mmdetection import BACKBONE_TO_DECODER

_LABELS = "dn_query_generator.label_embedding.weight"
_CLASS_HEAD = "bbox_head.cls_branches.0.weight"

MMDETECTION_DINO = Layout(
    source="mmdet-dino",
    signature=(_CLASS_HEAD, "decoder.ref_point_head.layers.0.weight"),
    is_dino=True,
    position=(20.0, 0.0),
    position_settings=("temperature", "offset"),
    position_note="its config `improved` has 10000 and -0.5",
    normalize=label_rows.reader(_LABELS, _CLASS_HEAD),
    complete=label_rows.writer(_LABELS, _CLASS_HEAD),
    blocks=(
        *BACKBONE_TO_DECODER,
        *dino_decoder("decoder"),
        NameBlock("query_embedding.weight", "queries.content", (NameRow("", "", WHOLE),)),
        NameBlock("memory_trans_fc", "queries.memory_proj"),
        NameBlock("memory_trans_norm", "queries.memory_norm"),
        label_rows.label_block(_LABELS),
    ),
)
