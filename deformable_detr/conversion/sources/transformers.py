"""Names of transformers' DeformableDetrForObjectDetection with a timm ResNet.

The table has the names of the module, as of version 5. Files, even of version 5, keep the older
names, and hold only one of several names of a tied tensor.
"""

import re

from torch import Tensor

from deformable_detr.conversion.layout import (
    MS_DEFORM_ATTN,
    WHOLE,
    Layout,
    NameBlock,
    NameRow,
)
from deformable_detr.conversion.sources.head_names import heads, heads_of_refining_decoder, queries
from deformable_detr.conversion.sources.resnet_names import torchvision_names

_QUERY, _KEY, _VALUE = 0, 1, 2  # order of the rows of nn.MultiheadAttention's in_proj
_PROJECTIONS = tuple(
    NameRow(f"self_attn.{name}_proj.{leaf}", f"self_attn.in_proj_{leaf}", WHOLE, part=part)
    for name, part in (("k", _KEY), ("v", _VALUE), ("q", _QUERY))
    for leaf in ("weight", "bias")
)
# (pattern in a module's name, replacement in a file's name), and the inverse
_FILE_NAMES = (
    (r"^model\.backbone\.model\.", "model.backbone.conv_encoder.model."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.fc([12])\.", r".fc\1."),
)
_MODULE_NAMES = (
    (r"^model\.backbone\.conv_encoder\.", "model.backbone."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"(\.layers\.\d+)\.fc([12])\.", r"\1.mlp.fc\2."),
)


def file_name(module_name: str) -> str:
    """Return the name under which `save_pretrained` writes a tensor of the module."""
    return _substitute(module_name, _FILE_NAMES)


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _normalize(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map file names to module names, and add the shared class heads that a file omits."""
    named = {_substitute(name, _MODULE_NAMES): tensor for name, tensor in state.items()}
    heads = {
        match["index"]
        for name in named
        if (match := re.search(r"bbox_embed\.(?P<index>\d+)\.", name))
    }
    for leaf in ("weight", "bias"):
        first = named.get(f"class_embed.0.{leaf}")
        if first is None or f"class_embed.1.{leaf}" in named:
            continue
        for index in heads:
            named.setdefault(f"class_embed.{index}.{leaf}", first)
    return named


TRANSFORMERS = Layout(
    source="transformers",
    signature=("model.level_embed",),
    tied_may_be_absent=True,
    normalize=_normalize,
    blocks=(
        NameBlock("model.level_embed", "memory_builder.level_embed", (NameRow("", "", WHOLE),)),
        *torchvision_names("model.backbone.model"),
        NameBlock(
            "model.position_embedding",
            "memory_builder.position",
            (
                NameRow("row_embeddings", "row_embed", ("weight",)),
                NameRow("column_embeddings", "column_embed", ("weight",)),
            ),
            when="learned_position",
        ),
        NameBlock(
            "model.input_proj.{i}",
            "neck",
            (NameRow("0", "projections.{i}"), NameRow("1", "norms.{i}")),
            each="level",
        ),
        NameBlock(
            "model.query_position_embeddings.weight",
            "queries.embed",
            (NameRow("", "", WHOLE),),
            when="one_stage",
        ),
        NameBlock(
            "model.encoder.layers.{i}",
            "encoder.layers.{i}",
            (
                NameRow("self_attn", "self_attn", MS_DEFORM_ATTN),
                NameRow("self_attn_layer_norm", "norm1"),
                NameRow("mlp.fc1", "linear1"),
                NameRow("mlp.fc2", "linear2"),
                NameRow("final_layer_norm", "norm2"),
            ),
            each="encoder_layer",
        ),
        NameBlock(
            "model.decoder.layers.{i}",
            "decoder.layers.{i}",
            (
                *_PROJECTIONS,
                NameRow("self_attn.o_proj", "self_attn.out_proj"),
                NameRow("self_attn_layer_norm", "norm1"),
                NameRow("encoder_attn", "cross_attn", MS_DEFORM_ATTN),
                NameRow("encoder_attn_layer_norm", "norm2"),
                NameRow("mlp.fc1", "linear1"),
                NameRow("mlp.fc2", "linear2"),
                NameRow("final_layer_norm", "norm3"),
            ),
            each="decoder_layer",
        ),
        *heads_of_refining_decoder("model.decoder"),
        *queries("model"),
        *heads(),
    ),
)
