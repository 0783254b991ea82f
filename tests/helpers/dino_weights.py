"""Names and shapes of DINO's tensors in three implementations, and values made of the names.

Written from the sources of the three, independently of the package's tables.
"""

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks and width of ResNet-50
_ATTENTION_PARTS = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")


@dataclass(frozen=True)
class DinoModel:
    """Options that determine the tensors; the defaults are those of the 4-scale models."""

    backbone_levels: int = 3
    width: int = 256
    layers: int = 6
    ffn: int = 2048
    heads: int = 8
    points: int = 4
    queries: int = 900
    classes: int = 80

    @property
    def levels(self) -> int:
        return self.backbone_levels + 1


def official_dino(model: DinoModel) -> Shapes:
    """Return the tensors of IDEA-Research/DINO; its list of labels has a row too many."""
    shapes: Shapes = {"transformer.level_embed": (model.levels, model.width)}
    for layer in range(model.layers):
        name = f"transformer.encoder.layers.{layer}"
        _deformable_attention(shapes, f"{name}.self_attn", model)
        _norms(shapes, model, *(f"{name}.norm{i}" for i in (1, 2)))
        _ffn(shapes, f"{name}.linear1", f"{name}.linear2", model)
    for layer in range(model.layers):
        name = f"transformer.decoder.layers.{layer}"
        _deformable_attention(shapes, f"{name}.cross_attn", model)
        _attention(shapes, f"{name}.self_attn", model)
        _norms(shapes, model, *(f"{name}.norm{i}" for i in (1, 2, 3)))
        _ffn(shapes, f"{name}.linear1", f"{name}.linear2", model)
    _query_parts(shapes, "transformer.decoder", model)
    for prefix in ("", "transformer.decoder."):
        for layer in range(model.layers):
            _linear(shapes, f"{prefix}class_embed.{layer}", model.classes, model.width)
            _mlp(shapes, f"{prefix}bbox_embed.{layer}.layers", (0, 1, 2), model)
    shapes["transformer.tgt_embed.weight"] = (model.queries, model.width)
    _linear(shapes, "transformer.enc_output", model.width, model.width)
    _norms(shapes, model, "transformer.enc_output_norm")
    _linear(shapes, "transformer.enc_out_class_embed", model.classes, model.width)
    _mlp(shapes, "transformer.enc_out_bbox_embed.layers", (0, 1, 2), model)
    shapes["label_enc.weight"] = (model.classes + 1, model.width)
    for level, (channels, kernel) in enumerate(_inputs(model)):
        shapes[f"input_proj.{level}.0.weight"] = (model.width, channels, kernel, kernel)
        shapes[f"input_proj.{level}.0.bias"] = (model.width,)
        _norms(shapes, model, f"input_proj.{level}.1")
    _torchvision_resnet(shapes, "backbone.0.body")
    return shapes


def detrex_dino(model: DinoModel) -> Shapes:
    """Return the tensors of detrex' projects/dino."""
    shapes: Shapes = {}
    _detectron2_resnet(shapes, "backbone")
    for level, (channels, kernel) in enumerate(_inputs(model)):
        extra = level - model.backbone_levels
        name = f"neck.extra_convs.{extra}" if extra >= 0 else f"neck.convs.{level}"
        shapes[f"{name}.conv.weight"] = (model.width, channels, kernel, kernel)
        shapes[f"{name}.conv.bias"] = (model.width,)
        _norms(shapes, model, f"{name}.norm")
    shapes["transformer.level_embeds"] = (model.levels, model.width)
    for stack, num_norms in (("encoder", 2), ("decoder", 3)):
        for layer in range(model.layers):
            name = f"transformer.{stack}.layers.{layer}"
            if stack == "decoder":
                _attention(shapes, f"{name}.attentions.0.attn", model)
            _deformable_attention(shapes, f"{name}.attentions.{num_norms - 2}", model)
            _ffn(shapes, f"{name}.ffns.0.layers.0.0", f"{name}.ffns.0.layers.1", model)
            _norms(shapes, model, *(f"{name}.norms.{i}" for i in range(num_norms)))
    _query_parts(shapes, "transformer.decoder", model)
    shapes["transformer.tgt_embed.weight"] = (model.queries, model.width)
    _linear(shapes, "transformer.enc_output", model.width, model.width)
    _norms(shapes, model, "transformer.enc_output_norm")
    for prefix in ("", "transformer.decoder."):
        for head in range(model.layers + 1):
            _linear(shapes, f"{prefix}class_embed.{head}", model.classes, model.width)
            _mlp(shapes, f"{prefix}bbox_embed.{head}.layers", (0, 1, 2), model)
    shapes["label_enc.weight"] = (model.classes, model.width)
    return shapes


def mmdetection_dino(model: DinoModel) -> Shapes:
    """Return the tensors of mmdetection 3.x' DINO."""
    shapes: Shapes = {"level_embed": (model.levels, model.width)}
    _torchvision_resnet(shapes, "backbone")
    for level, (channels, kernel) in enumerate(_inputs(model)):
        extra = level - model.backbone_levels
        name = f"neck.extra_convs.{extra}" if extra >= 0 else f"neck.convs.{level}"
        shapes[f"{name}.conv.weight"] = (model.width, channels, kernel, kernel)
        _norms(shapes, model, f"{name}.gn")
    for head in range(model.layers + 1):
        _linear(shapes, f"bbox_head.cls_branches.{head}", model.classes, model.width)
        _mlp(shapes, f"bbox_head.reg_branches.{head}", (0, 2, 4), model)
    for stack, num_norms in (("encoder", 2), ("decoder", 3)):
        for layer in range(model.layers):
            name = f"{stack}.layers.{layer}"
            if stack == "decoder":
                _attention(shapes, f"{name}.self_attn.attn", model)
            deformable = "self_attn" if stack == "encoder" else "cross_attn"
            _deformable_attention(shapes, f"{name}.{deformable}", model)
            _ffn(shapes, f"{name}.ffn.layers.0.0", f"{name}.ffn.layers.1", model)
            _norms(shapes, model, *(f"{name}.norms.{i}" for i in range(num_norms)))
    _query_parts(shapes, "decoder", model)
    shapes["query_embedding.weight"] = (model.queries, model.width)
    _linear(shapes, "memory_trans_fc", model.width, model.width)
    _norms(shapes, model, "memory_trans_norm")
    shapes["dn_query_generator.label_embedding.weight"] = (model.classes, model.width)
    return shapes


# Options of a file that is fast in a test; the backbone is always a ResNet-50.
SMALL_DINO = {"width": 64, "layers": 2, "ffn": 32, "queries": 10}
SHAPES = {"dino": official_dino, "detrex-dino": detrex_dino, "mmdet-dino": mmdetection_dino}


def _linear(shapes: Shapes, name: str, outputs: int, inputs: int) -> None:
    shapes[f"{name}.weight"] = (outputs, inputs)
    shapes[f"{name}.bias"] = (outputs,)


def _norms(shapes: Shapes, model: DinoModel, *names: str) -> None:
    for name in names:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (model.width,)


def _mlp(shapes: Shapes, name: str, numbers: tuple[int, ...], model: DinoModel) -> None:
    for number, outputs in zip(numbers, (model.width, model.width, 4), strict=True):
        _linear(shapes, f"{name}.{number}", outputs, model.width)


def _ffn(shapes: Shapes, first: str, second: str, model: DinoModel) -> None:
    _linear(shapes, first, model.ffn, model.width)
    _linear(shapes, second, model.width, model.ffn)


def _deformable_attention(shapes: Shapes, name: str, model: DinoModel) -> None:
    samples = model.heads * model.levels * model.points
    for part, outputs in zip(
        _ATTENTION_PARTS, (2 * samples, samples, model.width, model.width), strict=True
    ):
        _linear(shapes, f"{name}.{part}", outputs, model.width)


def _attention(shapes: Shapes, name: str, model: DinoModel) -> None:
    shapes[f"{name}.in_proj_weight"] = (3 * model.width, model.width)
    shapes[f"{name}.in_proj_bias"] = (3 * model.width,)
    _linear(shapes, f"{name}.out_proj", model.width, model.width)


def _query_parts(shapes: Shapes, decoder: str, model: DinoModel) -> None:
    _norms(shapes, model, f"{decoder}.norm")
    _linear(shapes, f"{decoder}.ref_point_head.layers.0", model.width, 2 * model.width)
    _linear(shapes, f"{decoder}.ref_point_head.layers.1", model.width, model.width)


def _inputs(model: DinoModel) -> list[tuple[int, int]]:
    """Return channels and kernel of the projection to each level."""
    channels = [4 * width for _, width in _STAGES][-model.backbone_levels :]
    return [*((count, 1) for count in channels), (channels[-1], 3)]


def _frozen_norm(shapes: Shapes, name: str, width: int) -> None:
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{leaf}"] = (width,)


def _torchvision_resnet(shapes: Shapes, name: str) -> None:
    shapes[f"{name}.conv1.weight"] = (64, 3, 7, 7)
    _frozen_norm(shapes, f"{name}.bn1", 64)
    for stage, block, sizes, width in _blocks():
        prefix = f"{name}.layer{stage}.{block}"
        for number, size in enumerate(sizes[:3], start=1):
            shapes[f"{prefix}.conv{number}.weight"] = size
            _frozen_norm(shapes, f"{prefix}.bn{number}", size[0])
        if block == 0:
            shapes[f"{prefix}.downsample.0.weight"] = sizes[3]
            _frozen_norm(shapes, f"{prefix}.downsample.1", width)


def _detectron2_resnet(shapes: Shapes, name: str) -> None:
    shapes[f"{name}.stem.conv1.weight"] = (64, 3, 7, 7)
    _frozen_norm(shapes, f"{name}.stem.conv1.norm", 64)
    for stage, block, sizes, width in _blocks():
        prefix = f"{name}.res{stage + 1}.{block}"
        for number, size in enumerate(sizes[:3], start=1):
            shapes[f"{prefix}.conv{number}.weight"] = size
            _frozen_norm(shapes, f"{prefix}.conv{number}.norm", size[0])
        if block == 0:
            shapes[f"{prefix}.shortcut.weight"] = sizes[3]
            _frozen_norm(shapes, f"{prefix}.shortcut.norm", width)


def _blocks() -> list[tuple[int, int, list[tuple[int, int, int, int]], int]]:
    """Return stage, block, shapes of three convolutions and the shortcut's, and output width."""
    blocks = []
    channels = 64
    for stage, (count, width) in enumerate(_STAGES, start=1):
        for block in range(count):
            wide = 4 * width
            sizes = [
                (width, channels, 1, 1),
                (width, width, 3, 3),
                (wide, width, 1, 1),
                (wide, channels, 1, 1),
            ]
            blocks.append((stage, block, sizes, wide))
            channels = wide
    return blocks


def value_of_name(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return numbers of mean 0 and variance 1 that the name determines, row by row."""
    start = zlib.crc32(name.encode()) % 100_003
    steps = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    number = 43758.5453 * np.sin(12.9898 * steps + 0.001 * start)
    value = math.sqrt(3) * (2 * (number - np.floor(number)) - 1)
    return torch.from_numpy(value).reshape(shape)


def official_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor of a name of the official DINO, with values of the usual magnitude.

    Those of `in_proj_bias` are not small, and images are made like weights.
    """
    value = value_of_name(name, shape)
    match name.rpartition(".")[2]:
        case "running_var":
            value = 1 + 0.1 * value.abs()
        case "running_mean":
            value = 0.1 * value
        case "bias":
            if "class_embed" in name:
                value = -2 + 0.1 * value
            elif "sampling_offsets" not in name:
                value = 0.05 * value
        case "weight" if len(shape) == 1:
            value = 1 + 0.1 * value
        case _ if not name.endswith(("level_embed", "tgt_embed.weight", "label_enc.weight")):
            value = value / math.sqrt(math.prod(shape[1:]))
    return value.float()


def state_by_name(shapes: Shapes, *, shared_heads: bool = False) -> dict[str, Tensor]:
    """Return tensors with values by name; one with several names has those of its first name.

    Args:
        shapes: shape by name.
        shared_heads: whether all layers of the official decoder have the same heads.
    """
    made: dict[str, Tensor] = {}
    state = {}
    for name, shape in shapes.items():
        first = re.sub(r"^transformer\.decoder\.((?:bbox|class)_embed\.)", r"\1", name)
        if shared_heads:
            first = re.sub(r"^((?:bbox|class)_embed)\.\d+\.", r"\1.0.", first)
        if first not in made:
            made[first] = official_weight(first, shape)
        state[name] = made[first]
    return state
