"""Model settings, derived from tensor names, tensor shapes and metadata of a file."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deformable_detr.conversion.layout import DetectorStructure, Layout
from deformable_detr.messages import in_brief

# (depth, blocks per stage, whether they are bottlenecks): He et al., CVPR 2016, table 1
_RESNETS = (
    (18, (2, 2, 2, 2), False),
    (34, (3, 4, 6, 3), False),
    (50, (3, 4, 6, 3), True),
    (101, (3, 4, 23, 3), True),
    (152, (3, 8, 36, 3), True),
)
_FIRST_STRIDE = 4
_FIRST_WIDTHS = {True: 256, False: 64}  # channels of the first stage, by `bottleneck`
_LAST_STAGE = 4
# The paper's settings, assumed where a file does not define them.
_NUM_HEADS = 8
_NUM_POINTS = 4
_NUM_QUERIES = 300
_TEMPERATURES = ("pe_temperatureH", "pe_temperatureW")  # options of the official DINO


def model_settings(
    layout: Layout,
    structure: DetectorStructure,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    what: str,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings `model` that build the detector, and the assumptions made.

    Args:
        layout: table of the source.
        structure: structure of the detector.
        state: its tensors by our names.
        options: options in the file, by the names of the official code.
        what: description of the file for error messages.

    Raises:
        ValueError: a setting is determined by neither the tensors nor the options.
    """
    assumed: list[str] = []
    heads = _num_heads(structure, state, options, what)
    per_point = structure.num_levels * heads
    settings: dict[str, Any] = {
        "embed_dim": state["memory_builder.level_embed"].shape[1],
        "backbone": _backbone(structure, state, options, assumed, what),
        "neck": {"kind": "channel_mapper", "num_levels": structure.num_levels},
        "position": _position(layout, structure, state, options, assumed, what),
        "attention": {"num_heads": heads},
        "encoder": {"num_layers": 0},
        "queries": _queries(structure, state, options, assumed, what),
        "decoder": {
            "num_layers": structure.decoder_layers,
            **_layer(state, "decoder.layers.0", "cross_attn", per_point),
            **_dropout(options, structure),
            "box_refinement": structure.box_refinement,
        },
    }
    if structure.dino:
        settings["decoder"] |= {
            "position": "reference",
            "look_forward_twice": True,
            "share_heads": structure.share_heads,
        }
        settings["denoising"] = {} if structure.denoising else None
    if structure.encoder_layers:
        settings["encoder"] = {
            "num_layers": structure.encoder_layers,
            **_layer(state, "encoder.layers.0", "self_attn", per_point),
            **_dropout(options, structure),
        }
    return settings, tuple(assumed)


def _layer(
    state: Mapping[str, Tensor], layer: str, attention: str, per_point: int
) -> dict[str, Any]:
    return {
        "ffn_dim": state[f"{layer}.linear1.weight"].shape[0],
        "num_points": _samples(state, f"{layer}.{attention}") // per_point,
    }


def _position(
    layout: Layout,
    structure: DetectorStructure,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    assumed: list[str],
    what: str,
) -> dict[str, Any]:
    if structure.learned_position:
        rows = state["memory_builder.position.row_embed.weight"].shape[0]
        return {"kind": "learned", "max_cells": rows}
    temperature, offset = layout.position
    given = [options[key] for key in _TEMPERATURES if key in options]
    if not layout.position_settings:
        return {"kind": "sine"}
    if layout.position_settings == ("temperature",) and given:
        if any(not _is_number(value) or value != given[0] for value in given):
            raise ValueError(
                f"{' and '.join(_TEMPERATURES)} in the options of {what} must be equal numbers, "
                f"got {in_brief(given)}; this package has one temperature"
            )
        temperature = given[0]
    else:
        note = f" ({layout.position_note})" if layout.position_note else ""
        assumed.append(f"position.temperature: {temperature:g}, position.offset: {offset:g}{note}")
    return {"kind": "sine", "temperature": temperature, "offset": offset}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dropout(options: Mapping[str, Any], structure: DetectorStructure) -> dict[str, float]:
    value = options.get("dropout", 0.0 if structure.dino else None)
    if not isinstance(value, int | float) or not _is_number(value) or not 0 <= value < 1:
        return {}
    return {"dropout": float(value)}


def _samples(state: Mapping[str, Tensor], attention: str) -> int:
    """Return heads times levels times points of an attention."""
    return state[f"{attention}.attention_weights.bias"].shape[0]


def _num_heads(
    structure: DetectorStructure, state: Mapping[str, Tensor], options: Mapping[str, Any], what: str
) -> int:
    """Return the number of heads; shapes give only the product of heads and points."""
    attentions = ["decoder.layers.0.cross_attn"]
    if structure.encoder_layers:
        attentions.append("encoder.layers.0.self_attn")
    products = [_samples(state, attention) // structure.num_levels for attention in attentions]
    heads = options.get("nheads")
    if isinstance(heads, int) and heads > 0 and not any(product % heads for product in products):
        return heads
    if any(product != _NUM_HEADS * _NUM_POINTS for product in products):
        raise ValueError(
            f"{what} must say how many attention heads it has, as {products[0]} points per level "
            f"are not {_NUM_HEADS} heads of {_NUM_POINTS}; convert it with --config, the settings "
            "it was trained with"
        )
    return _NUM_HEADS


def _num_rows(state: Mapping[str, Tensor], name: str, what: str) -> int:
    if state[name].ndim != 2:
        raise ValueError(
            f"{name} of {what} must be one vector for each query, got shape "
            f"{tuple(state[name].shape)}; the file is damaged"
        )
    return state[name].shape[0]


def _queries(
    structure: DetectorStructure,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    assumed: list[str],
    what: str,
) -> dict[str, Any]:
    if structure.dino:
        return {
            "kind": "two_stage",
            "num_queries": _num_rows(state, "queries.content", what),
            "content": "learned",
            "ranking": "class",
        }
    if not structure.two_stage:
        return {"kind": "learned", "num_queries": _num_rows(state, "queries.embed", what)}
    count = options.get("num_queries")
    if not isinstance(count, int):
        count = _NUM_QUERIES
        assumed.append(f"queries.num_queries: {count}")
    return {"kind": "two_stage", "num_queries": count}


def _backbone(
    structure: DetectorStructure,
    state: Mapping[str, Tensor],
    options: Mapping[str, Any],
    assumed: list[str],
    what: str,
) -> dict[str, Any]:
    blocks = structure.stage_blocks
    depths = [
        depth
        for depth, stages, bottleneck in _RESNETS
        if stages[: len(blocks)] == blocks and bottleneck == structure.bottleneck
    ]
    if not depths:
        raise ValueError(f"backbone of {what} must be a ResNet, got stages of {blocks} blocks")
    dilation = options.get("dilation")
    if not isinstance(dilation, bool):
        dilation = False
        if structure.num_levels == 1:
            assumed.append("backbone.dilation: false (DC5 has the same weights)")
    first = _FIRST_WIDTHS[structure.bottleneck]
    stages = [
        (state[f"neck.projections.{level}.weight"].shape[1] // first).bit_length()
        for level in range(structure.num_backbone_levels)
    ]
    strides = [_FIRST_STRIDE * 2 ** (stage - 1) for stage in stages]
    if dilation and stages[-1] == _LAST_STAGE:
        strides[-1] //= 2
    return {
        "kind": "resnet",
        "depth": depths[0],
        "dilation": dilation,
        "out_strides": strides,
        "weights": "none",
    }
