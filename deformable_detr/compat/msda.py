"""Drop-in for `MultiScaleDeformableAttention`, the official extension, on this package's operators.

Import this module first; code written for the extension then runs unchanged, also on a CPU:

    import deformable_detr.compat.msda
    import MultiScaleDeformableAttention as MSDA

An installed extension that has not been imported yet is shadowed. If it is already imported, this
module raises instead of replacing it, since a program could then call both implementations.
Code with its own copy of the extension needs one more line, as in GroundingDINO:

    sys.modules["groundingdino._C"] = sys.modules["MultiScaleDeformableAttention"]
"""

import importlib.machinery
import importlib.util
import itertools
import sys

import torch
from torch import Tensor

from deformable_detr.ops import ms_deform_attn, resolve_backend
from deformable_detr.ops.ms_deformable_attention import native
from deformable_detr.ops.ms_deformable_attention.dispatch import check_arguments

MODULE_NAME = "MultiScaleDeformableAttention"


@torch.no_grad()
def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute the official extension's forward, for any batch size, on CPU and CUDA.

    Low-precision locations and weights are converted to float32. This cannot restore precision:
    float16 locations between 0.5 and 1 are multiples of 2^-11.

    Args:
        value: (N, S, M, D) features.
        spatial_shapes: (L, 2) int64 (height, width) of the levels; copied to the host.
        level_start_index: (L,) int64 index of each level's first cell; checked, otherwise unused.
        sampling_locations: (N, Q, M, L, P, 2) points (x, y), of any floating dtype.
        attention_weights: (N, Q, M, L, P), of any floating dtype.
        im2col_step: ignored; the batch is not split.

    Returns:
        (N, Q, M * D) features in the dtype of value.

    Raises:
        ValueError: shapes, dtypes or devices do not match, or levels are not contiguous.
    """
    level_shapes = _level_shapes(spatial_shapes, level_start_index)
    dtype = _coordinate_dtype(value)
    return ms_deform_attn(
        value, level_shapes, sampling_locations.to(dtype), attention_weights.to(dtype)
    )


@torch.no_grad()
def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> list[Tensor]:
    """Return the gradients of value, sampling_locations and attention_weights, each in its dtype.

    Arguments and errors are those of `ms_deform_attn_forward`; grad_output is (N, Q, M * D).
    """
    level_shapes = _level_shapes(spatial_shapes, level_start_index)
    dtype = _coordinate_dtype(value)
    others = (sampling_locations.to(dtype), attention_weights.to(dtype))
    check_arguments(value, level_shapes, *others)
    N, Q, M = attention_weights.shape[:3]
    if grad_output.shape != (N, Q, M * value.shape[3]) or grad_output.device != value.device:
        raise ValueError(
            f"grad_output must have shape {(N, Q, M * value.shape[3])} on {value.device}, "
            f"got {tuple(grad_output.shape)} on {grad_output.device}"
        )
    grad_output = grad_output.to(value.dtype)
    gradients: tuple[Tensor, ...]
    if resolve_backend("auto", value.device) == "native":
        gradients = native.ms_deform_attn_backward(grad_output, value, level_shapes, *others)
    else:
        inputs = [tensor.detach().requires_grad_() for tensor in (value, *others)]
        with torch.enable_grad():
            output = ms_deform_attn(inputs[0], level_shapes, *inputs[1:])
        gradients = torch.autograd.grad(output, inputs, grad_output)
    dtypes = (value.dtype, sampling_locations.dtype, attention_weights.dtype)
    return [gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True)]


def _coordinate_dtype(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _level_shapes(spatial_shapes: Tensor, level_start_index: Tensor) -> tuple[tuple[int, int], ...]:
    """Convert the shapes to Python integers, and check the level starts against them."""
    if spatial_shapes.ndim != 2 or spatial_shapes.shape[1] != 2:
        raise ValueError(
            f"spatial_shapes must have shape (L, 2), got {tuple(spatial_shapes.shape)}"
        )
    if spatial_shapes.is_floating_point():
        raise ValueError(f"spatial_shapes must hold integers, got {spatial_shapes.dtype}")
    level_shapes = tuple((height, width) for height, width in spatial_shapes.tolist())
    sizes = [height * width for height, width in level_shapes]
    expected = list(itertools.accumulate(sizes, initial=0))[:-1]
    starts = level_start_index.tolist()
    if starts != expected:
        raise ValueError(
            f"level_start_index must be {expected} as spatial_shapes are {level_shapes}, "
            f"got {starts}"
        )
    return level_shapes


def _install() -> None:
    present = sys.modules.get(MODULE_NAME)
    is_reload = getattr(getattr(present, "__spec__", None), "origin", None) == __file__
    if present is not None and not is_reload:
        raise ImportError(
            f"{MODULE_NAME} is already imported, from {getattr(present, '__file__', None)}; "
            f"import {__name__} before it"
        )
    spec = importlib.machinery.ModuleSpec(MODULE_NAME, loader=None, origin=__file__)
    module = importlib.util.module_from_spec(spec)
    module.__doc__ = f"The official extension's two functions, from {__name__}."
    vars(module).update(
        ms_deform_attn_forward=ms_deform_attn_forward,
        ms_deform_attn_backward=ms_deform_attn_backward,
    )
    sys.modules[MODULE_NAME] = module


_install()
