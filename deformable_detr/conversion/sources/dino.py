"""Names of the official DINO, IDEA-Research/DINO."""

from deformable_detr.conversion.layout import THREE_LAYERS, WHOLE, Layout, NameBlock, NameRow
from deformable_detr.conversion.sources import label_rows
from deformable_detr.conversion.sources.head_names import dino_decoder, layer_heads
from deformable_detr.conversion.sources.official import NECK, TRANSFORMER_LAYERS
from deformable_detr.conversion.sources.resnet_names import torchvision_names

_LABELS, _CLASS_HEAD = "label_enc.weight", "class_embed.0.weight"

DINO = Layout(
    source="dino",
    signature=("transformer.level_embed", "transformer.decoder.ref_point_head.layers.0.weight"),
    is_dino=True,
    position=(20.0, 0.0),
    position_settings=("temperature",),
    normalize=label_rows.reader(_LABELS, _CLASS_HEAD),
    complete=label_rows.writer(_LABELS, _CLASS_HEAD, num_spare=1),
    blocks=(
        NameBlock(
            "transformer.level_embed", "memory_builder.level_embed", (NameRow("", "", WHOLE),)
        ),
        *TRANSFORMER_LAYERS,
        *dino_decoder("transformer.decoder"),
        *layer_heads("transformer.decoder.class_embed", "transformer.decoder.bbox_embed"),
        NameBlock("transformer.tgt_embed.weight", "queries.content", (NameRow("", "", WHOLE),)),
        NameBlock("transformer.enc_output", "queries.memory_proj"),
        NameBlock("transformer.enc_output_norm", "queries.memory_norm"),
        NameBlock(
            "transformer.enc_out_bbox_embed",
            "queries.box_head",
            (NameRow("", "mlp", THREE_LAYERS),),
        ),
        NameBlock("transformer.enc_out_class_embed", "queries.class_head"),
        label_rows.label_block(_LABELS),
        NECK,
        *layer_heads("class_embed", "bbox_embed"),
        *torchvision_names("backbone.0.body"),
    ),
)
