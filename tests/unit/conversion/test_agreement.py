"""Official names, renamed as in each source's own converters, agree with the source's table.

The rules start from the official names, not from ours, and do not use the package's tables.
"""

import re

import pytest
import torch
from helpers.foreign_files import small_model
from helpers.models import DINO
from torch import Tensor

from deformable_detr import export_weights

_DETECTRON2 = (
    (r"^backbone\.0\.body\.(conv1|bn1)", r"backbone.stem.\1"),
    (r"^backbone\.0\.body\.layer1", "backbone.res2"),
    (r"^backbone\.0\.body\.layer2", "backbone.res3"),
    (r"^backbone\.0\.body\.layer3", "backbone.res4"),
    (r"^backbone\.0\.body\.layer4", "backbone.res5"),
    (r"^(backbone.*)\.bn(\d)", r"\1.conv\2.norm"),
    (r"\.downsample\.0", ".shortcut"),
    (r"\.downsample\.1", ".shortcut.norm"),
)
# The small models have two backbone levels and one extra level.
_NECK = (r"^input_proj\.([01])\.", r"neck.convs.\1."), (r"^input_proj\.2\.", "neck.extra_convs.0.")
RULES = {
    "transformers": (
        (r"^transformer\.", "model."),
        (r"^backbone\.0\.body", "model.backbone.model"),
        (r"^input_proj", "model.input_proj"),
        (r"^query_embed", "model.query_position_embeddings"),
        (r"(encoder\.layers\.\d)\.norm1", r"\1.self_attn_layer_norm"),
        (r"(encoder\.layers\.\d)\.norm2", r"\1.final_layer_norm"),
        (r"(decoder\.layers\.\d)\.norm1", r"\1.encoder_attn_layer_norm"),
        (r"(decoder\.layers\.\d)\.norm2", r"\1.self_attn_layer_norm"),
        (r"(decoder\.layers\.\d)\.norm3", r"\1.final_layer_norm"),
        (r"cross_attn", "encoder_attn"),
        (r"linear(\d)", r"mlp.fc\1"),
        (r"out_proj", "o_proj"),
    ),
    "detrex": (
        *_DETECTRON2,
        *_NECK,
        (r"^(neck.*)\.0\.(weight|bias)", r"\1.conv.\2"),
        (r"^(neck.*)\.1\.(weight|bias)", r"\1.norm.\2"),
        (r"level_embed", "level_embeds"),
        (r"query_embed", "query_embedding"),
        (r"(encoder\.layers\.\d)\.self_attn", r"\1.attentions.0"),
        (r"(encoder\.layers\.\d)\.norm1", r"\1.norms.0"),
        (r"(encoder\.layers\.\d)\.norm2", r"\1.norms.1"),
        (r"(decoder\.layers\.\d)\.norm1", r"\1.norms.1"),
        (r"(decoder\.layers\.\d)\.norm2", r"\1.norms.0"),
        (r"(decoder\.layers\.\d)\.norm3", r"\1.norms.2"),
        (r"(decoder\.layers\.\d)\.self_attn", r"\1.attentions.0.attn"),
        (r"(decoder\.layers\.\d)\.cross_attn", r"\1.attentions.1"),
        (r"linear1", "ffns.0.layers.0.0"),
        (r"linear2", "ffns.0.layers.1"),
    ),
    "mmdet": (
        (r"^backbone\.0\.body", "backbone"),
        *_NECK,
        (r"^(neck.*)\.0\.(weight|bias)", r"\1.conv.\2"),
        (r"^(neck.*)\.1\.(weight|bias)", r"\1.gn.\2"),
        (r"^class_embed", "bbox_head.cls_branches"),
        (r"^(bbox_embed\.\d\.layers)\.2", r"\1.4"),
        (r"^(bbox_embed\.\d\.layers)\.1", r"\1.2"),
        (r"^bbox_embed\.(\d)\.layers", r"bbox_head.reg_branches.\1"),
        (r"^query_embed", "query_embedding"),
        (r"^transformer\.reference_points", "reference_points_fc"),
        (r"^transformer\.enc_output_norm", "memory_trans_norm"),
        (r"^transformer\.enc_output", "memory_trans_fc"),
        (r"^transformer\.pos_trans\.", "pos_trans_fc."),
        (r"^transformer\.", ""),
        (r"(encoder\.layers\.\d)\.norm1", r"\1.norms.0"),
        (r"(encoder\.layers\.\d)\.norm2", r"\1.norms.1"),
        (r"(decoder\.layers\.\d)\.norm1", r"\1.norms.1"),
        (r"(decoder\.layers\.\d)\.norm2", r"\1.norms.0"),
        (r"(decoder\.layers\.\d)\.norm3", r"\1.norms.2"),
        (r"(decoder\.layers\.\d)\.self_attn", r"\1.self_attn.attn"),
        (r"linear1", "ffn.layers.0.0"),
        (r"linear2", "ffn.layers.1"),
    ),
}

# The heads of the proposals stand after those of the three decoder layers.
_PROPOSAL_HEADS = (r"^transformer\.enc_out_(bbox|class)_embed", r"\1_embed.3")
RULES["detrex-dino"] = (_PROPOSAL_HEADS, *RULES["detrex"])
RULES["mmdet-dino"] = (
    _PROPOSAL_HEADS,
    *RULES["mmdet"],
    (r"^tgt_embed", "query_embedding"),
    (r"^label_enc", "dn_query_generator.label_embedding"),
)


def renamed(source: str, official: dict[str, Tensor]) -> dict[str, Tensor]:
    state = {}
    for name, tensor in official.items():
        if (
            source.startswith("mmdet")
            and name.startswith("transformer.decoder.")
            and "embed" in name
        ):
            continue  # it has no second names for the heads
        for pattern, replacement in RULES[source]:
            name = re.sub(pattern, replacement, name)
        if source == "transformers" and "in_proj" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{letter}_proj.")] = part
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize("variant", ["single_scale", "multi_scale", "refine", "two_stage"])
@pytest.mark.parametrize("source", ["transformers", "detrex", "mmdet"])
def test_official_names_convert_to_the_names_of_the_source(source: str, variant: str) -> None:
    model = small_model(variant, num_classes=7)

    expected = renamed(source, export_weights(model, to="official"))
    exported = export_weights(model, to=source)

    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("source", ["detrex-dino", "mmdet-dino"])
def test_official_names_of_dino_convert_to_the_names_of_the_source(source: str) -> None:
    model = small_model("two_stage", *DINO, num_classes=7)
    official = export_weights(model, to="dino")
    assert not official["label_enc.weight"][7:].any()  # one row, never used
    official["label_enc.weight"] = official["label_enc.weight"][:7]

    expected = renamed(source, official)
    if source == "detrex-dino":  # its decoder has the proposals' heads too
        heads = [name for name in expected if re.match(r"(bbox|class)_embed\.3\.", name)]
        expected |= {f"transformer.decoder.{name}": expected[name] for name in heads}
    exported = export_weights(model, to=source)

    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
