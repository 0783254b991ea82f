"""State dicts of the official code, built independently of the package.

Names, order and shapes are those of the official repository, so that a mistake in the package's
table is detected.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class OfficialModel:
    """Options that determine the tensors; the defaults are those of the official code."""

    levels: int = 4
    box_refinement: bool = False
    two_stage: bool = False
    width: int = 256
    layers: int = 6
    ffn: int = 1024
    heads: int = 8
    points: int = 4
    queries: int = 300
    classes: int = 91


OFFICIAL_VARIANTS = {
    "single_scale": {"levels": 1},
    "single_scale_dc5": {"levels": 1},
    "multi_scale": {},
    "refine": {"box_refinement": True},
    "two_stage": {"box_refinement": True, "two_stage": True},
}
NUM_KEYS = {
    "single_scale": 549,
    "single_scale_dc5": 549,
    "multi_scale": 561,
    "refine": 597,
    "two_stage": 630,
}
# Options of a file that is fast in a test; the backbone is always a ResNet-50.
REDUCED = {"width": 64, "layers": 2, "ffn": 32, "queries": 5}
REDUCED_OVERRIDES = (
    "model.backbone.weights=none",
    "model.embed_dim=64",
    "model.encoder.num_layers=2",
    "model.encoder.ffn_dim=32",
    "model.decoder.num_layers=2",
    "model.decoder.ffn_dim=32",
    "model.queries.num_queries=5",
)


def official_shapes(model: OfficialModel) -> Shapes:
    """Return the shape of every tensor, in the order of the official state dict."""
    shapes: Shapes = {"transformer.level_embed": (model.levels, model.width)}
    for layer in range(model.layers):
        _encoder_layer(shapes, f"transformer.encoder.layers.{layer}", model)
    for layer in range(model.layers):
        _decoder_layer(shapes, f"transformer.decoder.layers.{layer}", model)
    num_heads = model.layers + model.two_stage
    if model.box_refinement:
        _box_heads(shapes, "transformer.decoder.bbox_embed", num_heads, model.width)
    if model.two_stage:
        _class_heads(shapes, "transformer.decoder.class_embed", num_heads, model)
        _linear(shapes, "transformer.enc_output", model.width, model.width)
        _norm(shapes, "transformer.enc_output_norm", model.width)
        _linear(shapes, "transformer.pos_trans", 2 * model.width, 2 * model.width)
        _norm(shapes, "transformer.pos_trans_norm", 2 * model.width)
    else:
        _linear(shapes, "transformer.reference_points", 2, model.width)
    _class_heads(shapes, "class_embed", num_heads, model)
    _box_heads(shapes, "bbox_embed", num_heads, model.width)
    if not model.two_stage:
        shapes["query_embed.weight"] = (model.queries, 2 * model.width)
    kernels = [(512, 1), (1024, 1), (2048, 1), (2048, 3)] if model.levels > 1 else [(2048, 1)]
    for level, (channels, kernel) in enumerate(kernels):
        shapes[f"input_proj.{level}.0.weight"] = (model.width, channels, kernel, kernel)
        shapes[f"input_proj.{level}.0.bias"] = (model.width,)
        _norm(shapes, f"input_proj.{level}.1", model.width)
    _resnet50(shapes, "backbone.0.body")
    return shapes


def _linear(shapes: Shapes, name: str, outputs: int, inputs: int) -> None:
    shapes[f"{name}.weight"] = (outputs, inputs)
    shapes[f"{name}.bias"] = (outputs,)


def _norm(shapes: Shapes, name: str, width: int) -> None:
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)


def _deformable_attention(shapes: Shapes, name: str, model: OfficialModel) -> None:
    samples = model.heads * model.levels * model.points
    _linear(shapes, f"{name}.sampling_offsets", 2 * samples, model.width)
    _linear(shapes, f"{name}.attention_weights", samples, model.width)
    _linear(shapes, f"{name}.value_proj", model.width, model.width)
    _linear(shapes, f"{name}.output_proj", model.width, model.width)


def _encoder_layer(shapes: Shapes, name: str, model: OfficialModel) -> None:
    _deformable_attention(shapes, f"{name}.self_attn", model)
    _norm(shapes, f"{name}.norm1", model.width)
    _linear(shapes, f"{name}.linear1", model.ffn, model.width)
    _linear(shapes, f"{name}.linear2", model.width, model.ffn)
    _norm(shapes, f"{name}.norm2", model.width)


def _decoder_layer(shapes: Shapes, name: str, model: OfficialModel) -> None:
    _deformable_attention(shapes, f"{name}.cross_attn", model)
    _norm(shapes, f"{name}.norm1", model.width)
    shapes[f"{name}.self_attn.in_proj_weight"] = (3 * model.width, model.width)
    shapes[f"{name}.self_attn.in_proj_bias"] = (3 * model.width,)
    _linear(shapes, f"{name}.self_attn.out_proj", model.width, model.width)
    _norm(shapes, f"{name}.norm2", model.width)
    _linear(shapes, f"{name}.linear1", model.ffn, model.width)
    _linear(shapes, f"{name}.linear2", model.width, model.ffn)
    _norm(shapes, f"{name}.norm3", model.width)


def _class_heads(shapes: Shapes, name: str, count: int, model: OfficialModel) -> None:
    for head in range(count):
        _linear(shapes, f"{name}.{head}", model.classes, model.width)


def _box_heads(shapes: Shapes, name: str, count: int, width: int) -> None:
    for head in range(count):
        for layer, outputs in enumerate((width, width, 4)):
            _linear(shapes, f"{name}.{head}.layers.{layer}", outputs, width)


def _frozen_norm(shapes: Shapes, name: str, width: int) -> None:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{leaf}"] = (width,)


def _resnet50(shapes: Shapes, name: str) -> None:
    shapes[f"{name}.conv1.weight"] = (64, 3, 7, 7)
    _frozen_norm(shapes, f"{name}.bn1", 64)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            prefix = f"{name}.layer{stage}.{block}"
            convolutions = ((channels, width, 1), (width, width, 3), (width, 4 * width, 1))
            for number, (inputs, outputs, kernel) in enumerate(convolutions, start=1):
                shapes[f"{prefix}.conv{number}.weight"] = (outputs, inputs, kernel, kernel)
                _frozen_norm(shapes, f"{prefix}.bn{number}", outputs)
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                _frozen_norm(shapes, f"{prefix}.downsample.1", 4 * width)
            channels = 4 * width


def official_state_dict(model: OfficialModel, *, seed: int = 0) -> dict[str, Tensor]:
    """Make random tensors, the same one under all names of a shared module."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in official_shapes(model).items():
        first = name.removeprefix("transformer.decoder.") if "_embed." in name else name
        if not model.box_refinement:
            head, dot, rest = first.partition("_embed.")
            if dot and head in ("class", "bbox"):
                first = f"{head}_embed.0.{rest.partition('.')[2]}"
        if first not in state:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[first] = 0.3 * torch.randn(shape, generator=generator) * fan_in**-0.5
            if first.endswith("running_var"):
                state[first] = state[first].abs() + 0.5
        state[name] = state[first]
    return {name: state[name] for name in official_shapes(model)}
