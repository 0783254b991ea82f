"""Public operators: check of the arguments, and choice of a back-end."""

import functools
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from deformable_detr.arguments import checked, require_type
from deformable_detr.ops import library
from deformable_detr.ops.checks import as_device, checked_operator
from deformable_detr.ops.ms_deformable_attention import native, reference
from deformable_detr.structures import LevelShapes

Backend = Literal["auto", "native", "reference"]

MAX_LEVELS = 8  # size of the table that is passed by value to the compiled kernels
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Speed of the reference relative to the native operators. CPU: float32, 17,821 queries, fused, two
# cores of a Zen 4, warm allocator; `deformable-detr benchmark ops` measures any machine.
_REFERENCE_COST = {
    "cpu": "measured 36 times slower forward and 24 times backward",
    "cuda": "expected to be several times slower",
}


@checked
def available_backends(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return, for every back-end, the reason why it does not support `device`, or "".

    Raises:
        ValueError: `device` is not a device name.
    """
    return {"native": library.obstacle(as_device(device)), "reference": ""}


# In a compiled graph the choice is a constant, like the device.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def resolve_backend(backend: Backend, device: torch.device | str) -> Literal["native", "reference"]:
    """Resolve `backend` to the back-end used for tensors on `device`.

    Raises:
        ValueError: `backend` is not one of `Backend`, or `device` is not a device name.
        RuntimeError: the back-end is not available for `device`.
    """
    if not isinstance(backend, str) or backend not in get_args(Backend):
        require_type("backend", backend, Backend)
    device = as_device(device)
    if backend == "reference":
        return "reference"
    obstacle = library.obstacle(device)
    if not obstacle:
        return "native"
    if backend == "native":
        raise RuntimeError(f"{obstacle}, or choose backend='reference'")
    if device.type in _REFERENCE_COST:
        _warn_of_reference(device.type, obstacle)
    return "reference"


@functools.cache  # warns once per device type and reason
def _warn_of_reference(device_type: str, obstacle: str) -> None:
    warnings.warn(
        f"deformable attention runs in plain PyTorch on {device_type}, "
        f"{_REFERENCE_COST[device_type]}: {obstacle}",
        RuntimeWarning,
        stacklevel=5,
    )


@checked_operator
def ms_deform_attn(
    value: Tensor,
    level_shapes: LevelShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sample every level at fractional points, and sum the weighted samples per head.

        out[n, q, m] = sum over l and p of attention_weights[n, q, m, l, p]
                       * bilinear(value of level l [n, :, m], sampling_locations[n, q, m, l, p])

    This is equation 3 of the Deformable DETR paper without its two projections. A location
    is relative to the padded level: (0, 0) is the outer corner of its first cell and (1, 1)
    that of its last. Samples outside the level are zero, as are those at infinite or NaN
    locations and their gradients.

    Args:
        value: (N, S, M, D) features, one row per cell, levels one after another.
        level_shapes: (height, width) of the L levels, at most 8; their areas sum to S.
        sampling_locations: (N, Q, M, L, P, 2) points (x, y); float64 if value is float64, else
            float32.
        attention_weights: (N, Q, M, L, P) in the dtype of sampling_locations.
        backend: "auto" selects the fastest back-end available for value's device.

    Returns:
        (N, Q, M * D) features in the dtype of value.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        RuntimeError: the chosen back-end is not available for the device.
    """
    arguments = (value, level_shapes, sampling_locations, attention_weights)
    check_arguments(*arguments)
    if resolve_backend(backend, value.device) == "native":
        return native.ms_deform_attn(*arguments)
    return reference.ms_deform_attn_core_pytorch(*arguments)


@checked_operator
def ms_deform_attn_fused(
    value: Tensor,
    level_shapes: LevelShapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Compute `ms_deform_attn` from the outputs of a module's projections: offsets and logits.

    The weights are the softmax of the logits over the L * P points of a head. A location is its
    reference plus its offset, in cells of the level from a reference point, and in units of
    size / (2 * P) from a reference box. The native back-end stores neither weights nor locations
    in memory, forward or backward. A point with an infinite or NaN coordinate takes part in the
    softmax, contributes zero and has no gradient but that of the softmax.

    Args:
        value: (N, S, M, D) features, one row per cell, levels one after another.
        level_shapes: (height, width) of the L levels, at most 8; their areas sum to S.
        reference_points: (N, Q, L, 2) points (x, y) or (N, Q, L, 4) boxes cxcywh, relative to
            the padded levels; float64 if value is float64, else float32.
        sampling_offsets: (N, Q, M, L, P, 2) (x, y), in the dtype of reference_points.
        attention_logits: (N, Q, M, L, P) in the dtype of reference_points.
        backend: "auto" selects the fastest back-end available for value's device.

    Returns:
        (N, Q, M * D) features in the dtype of value.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
        RuntimeError: the chosen back-end is not available for the device.
    """
    _check_value(value, level_shapes)
    if reference_points.ndim != 4 or reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            "reference_points must end in 2 (points) or 4 (boxes), "
            f"got shape {tuple(reference_points.shape)}"
        )
    _check_points("sampling_offsets", sampling_offsets, value, level_shapes)
    N, Q, M, L, P, _ = sampling_offsets.shape
    references_shape = (N, Q, L, reference_points.shape[-1])
    _check_tensor("reference_points", reference_points, references_shape, value)
    _check_tensor("attention_logits", attention_logits, (N, Q, M, L, P), value)
    arguments = (value, level_shapes, reference_points, sampling_offsets, attention_logits)
    if resolve_backend(backend, value.device) == "native":
        return native.ms_deform_attn_fused(*arguments)
    return reference.ms_deform_attn_fused_pytorch(*arguments)


def check_arguments(
    value: Tensor,
    level_shapes: LevelShapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Check the arguments of `ms_deform_attn`.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
    """
    _check_value(value, level_shapes)
    _check_points("sampling_locations", sampling_locations, value, level_shapes)
    points_shape = tuple(sampling_locations.shape[:5])
    _check_tensor("attention_weights", attention_weights, points_shape, value)


def _check_value(value: Tensor, level_shapes: LevelShapes) -> None:
    if value.ndim != 4:
        raise ValueError(f"value must have shape (N, S, M, D), got {tuple(value.shape)}")
    if value.dtype not in _DTYPES:
        raise ValueError(f"value must be float64, float32, float16 or bfloat16, got {value.dtype}")
    if not 1 <= len(level_shapes) <= MAX_LEVELS:
        raise ValueError(
            f"level_shapes must describe 1 to {MAX_LEVELS} levels, got {len(level_shapes)}"
        )
    if any(height < 0 or width < 0 for height, width in level_shapes):
        raise ValueError(f"level_shapes must hold no negative sizes, got {level_shapes}")
    cells = sum(height * width for height, width in level_shapes)
    if cells != value.shape[1]:
        raise ValueError(
            f"value holds S = {value.shape[1]} positions but level_shapes {level_shapes} "
            f"describe {cells}"
        )


def _check_points(name: str, points: Tensor, value: Tensor, level_shapes: LevelShapes) -> None:
    N, _, M, _ = value.shape
    L = len(level_shapes)
    shape = tuple(points.shape)
    if len(shape) != 6 or (shape[0], shape[2], shape[3], shape[5]) != (N, M, L, 2):
        raise ValueError(
            f"{name} must have shape (N, Q, M, L, P, 2) with N = {N}, M = {M} and L = {L}, "
            f"got {shape}"
        )
    _check_tensor(name, points, shape, value)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], value: Tensor) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    if tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} as value is {value.dtype}, got {tensor.dtype}")
    if tensor.device != value.device:
        raise ValueError(
            f"{name} must be on the device of value {value.device}, got {tensor.device}"
        )
