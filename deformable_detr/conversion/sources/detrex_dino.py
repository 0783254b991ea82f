"""Names of detrex' projects/dino, with the ResNet of detectron2.

Taken from its public source, as those of its Deformable DETR.
"""

from deformable_detr.conversion.layout import WHOLE, Layout, NameBlock, NameRow
from deformable_detr.conversion.sources import label_rows
from deformable_detr.conversion.sources.detrex import BACKBONE_TO_DECODER
from deformable_detr.conversion.sources.head_names import dino_decoder, heads

_LABELS, _CLASS_HEAD = "label_enc.weight", "class_embed.0.weight"

DETREX_DINO = Layout(
    source="detrex-dino",
    signature=("transformer.level_embeds", "transformer.decoder.ref_point_head.layers.0.weight"),
    is_dino=True,
    position=(10000.0, -0.5),
    position_settings=("temperature", "offset"),
    position_note="its config of 24 epochs has 20 and 0",
    normalize=label_rows.reader(_LABELS, _CLASS_HEAD),
    complete=label_rows.writer(_LABELS, _CLASS_HEAD),
    blocks=(
        *BACKBONE_TO_DECODER,
        *dino_decoder("transformer.decoder"),
        *heads("transformer.decoder.class_embed", "transformer.decoder.bbox_embed"),
        NameBlock("transformer.tgt_embed.weight", "queries.content", (NameRow("", "", WHOLE),)),
        NameBlock("transformer.enc_output", "queries.memory_proj"),
        NameBlock("transformer.enc_output_norm", "queries.memory_norm"),
        *heads(),
        label_rows.label_block(_LABELS),
    ),
)
