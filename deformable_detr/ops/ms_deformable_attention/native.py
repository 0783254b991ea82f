"""Compiled operators: calls, shapes and gradients."""

import itertools
from typing import Any, NoReturn

import torch
from torch import Tensor

from deformable_detr.ops import library
from deformable_detr.structures import LevelShapes


def ms_deform_attn(
    value: Tensor,
    level_shapes: LevelShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute `deformable_detr.ops.ms_deform_attn`."""
    operator = torch.ops.deformable_detr.ms_deform_attn
    return library.call(operator, value, _flat(level_shapes), sampling_locations, attention_weights)


def ms_deform_attn_backward(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: LevelShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of value, sampling_locations and attention_weights.

    The result is deterministic under `torch.use_deterministic_algorithms`, and always on a CPU.
    """
    return _gradients(
        grad_output, value, _flat(level_shapes), sampling_locations, attention_weights
    )


def ms_deform_attn_fused(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Compute `deformable_detr.ops.ms_deform_attn_fused`."""
    operator = torch.ops.deformable_detr.ms_deform_attn_fused
    tensors = (reference_points, sampling_offsets, attention_logits)
    return library.call(operator, value, _flat(level_shapes), *tensors)


def _flat(level_shapes: LevelShapes) -> list[int]:
    return list(itertools.chain.from_iterable(level_shapes))


def _fake_forward(value: Tensor, level_shapes: list[int], *others: Tensor) -> Tensor:
    """Return an empty output; N and Q are those of sampling_locations or reference_points."""
    N, Q = others[0].shape[:2]
    return value.new_empty(N, Q, value.shape[2] * value.shape[3])


def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _fake_fused_backward(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    needs_reference_grad: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        reference_points.new_empty(reference_points.shape if needs_reference_grad else (0,)),
        sampling_offsets.new_empty(sampling_offsets.shape),
        attention_logits.new_empty(attention_logits.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.level_shapes, *others = inputs
    ctx.save_for_backward(value, *others)


def _gradients(
    grad_output: Tensor,
    value: Tensor,
    level_shapes: list[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.deformable_detr.ms_deform_attn_backward(
        grad_output,
        value,
        level_shapes,
        sampling_locations,
        attention_weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return gradients


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *others = ctx.saved_tensors
    grad_value, *grad_others = _gradients(grad_output, value, ctx.level_shapes, *others)
    return grad_value, None, *grad_others


def _fused_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, reference_points, sampling_offsets, attention_logits = ctx.saved_tensors
    needs_reference_grad = ctx.needs_input_grad[2]
    grad_value, grad_references, grad_offsets, grad_logits = (
        torch.ops.deformable_detr.ms_deform_attn_fused_backward(
            grad_output,
            value,
            ctx.level_shapes,
            reference_points,
            sampling_offsets,
            attention_logits,
            needs_reference_grad,
            torch.are_deterministic_algorithms_enabled(),
        )
    )
    return (
        grad_value,
        None,
        grad_references if needs_reference_grad else None,
        grad_offsets,
        grad_logits,
    )


def _refuse_second_derivative(ctx: Any, *grad_outputs: Tensor) -> NoReturn:
    raise RuntimeError(
        "multi-scale deformable attention can be differentiated once, not twice: it was called "
        "under create_graph=True"
    )


def _register() -> None:
    for name, fake_backward, backward in (
        ("ms_deform_attn", _fake_backward, _backward),
        ("ms_deform_attn_fused", _fake_fused_backward, _fused_backward),
    ):
        operator = f"deformable_detr::{name}"
        torch.library.register_fake(operator, _fake_forward)
        torch.library.register_fake(f"{operator}_backward", fake_backward)
        torch.library.register_autograd(operator, backward, setup_context=_setup_context)
        torch.library.register_autograd(f"{operator}_backward", _refuse_second_derivative)


if library.LOAD_ERROR is None:
    _register()
