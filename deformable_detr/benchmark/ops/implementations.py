"""Implementations to time: reference, native operators, other libraries."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deformable_detr.benchmark.ops.workload import locations_of, weights_of
from deformable_detr.ops import available_backends, ms_deform_attn, ms_deform_attn_fused
from deformable_detr.ops.ms_deformable_attention.reference import ms_deform_attn_core_pytorch
from deformable_detr.structures import LevelShapes

REFERENCE = "reference"
REFERENCE_MODULE = "reference module"
REFERENCE_BFLOAT16 = "reference bfloat16"
TRANSFORMERS = "transformers"
NATIVE = "native"
NATIVE_FUSED = "native fused"
NATIVE_BFLOAT16 = "native bfloat16"

MEANING = {
    REFERENCE: "plain PyTorch, grid_sample per level",
    REFERENCE_MODULE: "reference, including softmax and sampling locations as in a module",
    REFERENCE_BFLOAT16: "reference, value in bfloat16",
    TRANSFORMERS: "the PyTorch function of the transformers library",
    NATIVE: "compiled operator",
    NATIVE_FUSED: "compiled operator from offsets and logits; ratio relative to reference module",
    NATIVE_BFLOAT16: "compiled operator, value in bfloat16; ratio relative to reference in float32",
}


@dataclass(frozen=True)
class Implementation:
    """Implementation of deformable attention.

    Attributes:
        function: function of value, level_shapes and, if fused, reference_points,
            sampling_offsets and attention_logits; else of sampling_locations and
            attention_weights.
        dtype: dtype of value and output.
        baseline: name of the implementation that it is compared with.
        is_fused: whether `function` computes sampling locations and softmax itself.
    """

    name: str
    function: Callable[..., Tensor]
    dtype: torch.dtype
    baseline: str = REFERENCE
    is_fused: bool = False


def find_implementations(
    device: str, dtype: torch.dtype
) -> tuple[list[Implementation], dict[str, str]]:
    """Return the implementations that can run here, and reasons for the others, by name."""
    found = [
        Implementation(REFERENCE, ms_deform_attn_core_pytorch, dtype),
        Implementation(REFERENCE_MODULE, _reference_module, dtype, is_fused=True),
    ]
    missing = {}
    if dtype != torch.float32:
        missing[TRANSFORMERS] = "it requires one dtype for value and locations"
    elif importlib.util.find_spec("transformers") is None:
        missing[TRANSFORMERS] = "it is not installed; pip install transformers"
    else:
        found.append(Implementation(TRANSFORMERS, _transformers, dtype))
    with_bfloat16 = dtype == torch.float32
    if with_bfloat16:
        found.append(
            Implementation(REFERENCE_BFLOAT16, ms_deform_attn_core_pytorch, torch.bfloat16)
        )
    obstacle = available_backends(device)["native"]
    if obstacle:
        missing[NATIVE] = obstacle
        return found, missing
    found.append(Implementation(NATIVE, _native, dtype))
    found.append(
        Implementation(NATIVE_FUSED, _native_fused, dtype, REFERENCE_MODULE, is_fused=True)
    )
    if with_bfloat16:
        found.append(Implementation(NATIVE_BFLOAT16, _native, torch.bfloat16))
    return found, missing


def _native(*arguments: Any) -> Tensor:
    return ms_deform_attn(*arguments, backend="native")


def _native_fused(*arguments: Any) -> Tensor:
    return ms_deform_attn_fused(*arguments, backend="native")


def _reference_module(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    locations = locations_of(reference_points, sampling_offsets, level_shapes)
    return ms_deform_attn_core_pytorch(value, level_shapes, locations, weights_of(attention_logits))


def _transformers(
    value: Tensor, level_shapes: LevelShapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    # Imported here: it takes seconds, which processes of other implementations save.
    from transformers.models.deformable_detr import modeling_deformable_detr

    # Only its CUDA kernel uses level shapes and start indices as tensors, and im2col_step.
    unread = torch.empty(0)
    return modeling_deformable_detr.MultiScaleDeformableAttention().forward(
        value,
        unread,
        list(level_shapes),
        unread,
        sampling_locations,
        attention_weights,
        im2col_step=64,
    )
