"""Compiled deformable kernel convolution: call, shapes and gradients."""

import itertools
from typing import Any, NoReturn

import torch
from torch import Tensor

from deformable_detr.ops import library
from deformable_detr.ops.geometry import ConvGeometry


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def can_serve(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the operator is built and supports tensors of this device and dtype."""
    is_built = library.LOAD_ERROR is None
    return is_built and device.type == "cpu" and dtype in (torch.float32, torch.float64)


def deform_kernel_conv2d(
    x: Tensor, weight: Tensor, rotation: Tensor, geometry: ConvGeometry, clip_to_scope: bool
) -> Tensor:
    """Compute `dispatch.deform_kernel_conv2d` for tensors of one dtype."""
    numbers = list(itertools.chain.from_iterable(geometry))
    operator = torch.ops.deformable_detr.deform_kernel_conv2d
    return library.call(operator, x, weight, rotation, numbers, clip_to_scope)


def _fake_forward(
    x: Tensor, weight: Tensor, rotation: Tensor, geometry: list[int], clip_to_scope: bool
) -> Tensor:
    return x.new_empty(*x.shape[:2], *rotation.shape[2:])


def _fake_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    rotation: Tensor,
    geometry: list[int],
    clip_to_scope: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), rotation.new_empty(rotation.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.geometry, ctx.clip_to_scope = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.deformable_detr.deform_kernel_conv2d_backward(
        grad_output, *ctx.saved_tensors, ctx.geometry, ctx.clip_to_scope
    )
    return *gradients, None, None


def _refuse_second_derivative(ctx: Any, *grad_outputs: Tensor) -> NoReturn:
    raise RuntimeError(
        "deformable kernels can be differentiated once, not twice: they were called under "
        "create_graph=True"
    )


def _register() -> None:
    operator = "deformable_detr::deform_kernel_conv2d"
    torch.library.register_fake(operator, _fake_forward)
    torch.library.register_fake(f"{operator}_backward", _fake_backward)
    torch.library.register_autograd(operator, _backward, setup_context=_setup_context)
    torch.library.register_autograd(f"{operator}_backward", _refuse_second_derivative)


if library.LOAD_ERROR is None:
    _register()
