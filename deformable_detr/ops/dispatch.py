"""The public operators: arguments are checked once, here, and a back-end is chosen."""

from typing import Literal, get_args

import torch
from torch import Tensor

from deformable_detr.ops.reference import ms_deform_attn_core_pytorch

Backend = Literal["auto", "reference"]


def available_backends() -> dict[str, str]:
    """Every back-end and, where it cannot be used here, the reason; "" where it can."""
    return {"reference": ""}


def ms_deform_attn(
    value: Tensor,
    level_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Sample every level at fractional points and sum the samples, weighted, for each head.

        out[n, q, m] = sum over l and p of attention_weights[n, q, m, l, p]
                       * bilinear(value of level l [n, :, m], sampling_locations[n, q, m, l, p])

    This is equation 3 of the Deformable DETR paper without its two projections. A location
    is relative to the padded level: (0, 0) is the outer corner of its first cell and (1, 1)
    that of its last. Samples outside the level are zero; so are those at infinite or NaN
    locations, and their gradients.

    Args:
        value: (N, S, M, D) features, one row per cell, levels one after another.
        level_shapes: (height, width) of the L levels; their areas sum to S.
        sampling_locations: (N, Q, M, L, P, 2) points (x, y); float64 if value is, else float32.
        attention_weights: (N, Q, M, L, P) in the dtype of sampling_locations.
        backend: "auto" is the fastest one available for value's device and dtype.

    Returns:
        (N, Q, M * D) features in the dtype of value.

    Raises:
        ValueError: shapes, dtypes or devices disagree.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
    _check_arguments(value, level_shapes, sampling_locations, attention_weights)
    return ms_deform_attn_core_pytorch(value, level_shapes, sampling_locations, attention_weights)


def _check_arguments(
    value: Tensor,
    level_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.ndim != 4:
        raise ValueError(f"value must have shape (N, S, M, D), got {tuple(value.shape)}")
    N, S, M, _ = value.shape
    cells = sum(height * width for height, width in level_shapes)
    if cells != S:
        raise ValueError(
            f"value holds S = {S} positions but level_shapes {level_shapes} describe {cells}"
        )
    L = len(level_shapes)
    if sampling_locations.ndim != 6 or (
        *sampling_locations.shape[:1],
        *sampling_locations.shape[2:4],
        sampling_locations.shape[5],
    ) != (N, M, L, 2):
        raise ValueError(
            f"sampling_locations must have shape (N, Q, M, L, P, 2) with N = {N}, M = {M} and "
            f"L = {L}, got {tuple(sampling_locations.shape)}"
        )
    if attention_weights.shape != sampling_locations.shape[:5]:
        raise ValueError(
            f"attention_weights must have shape {tuple(sampling_locations.shape[:5])}, "
            f"got {tuple(attention_weights.shape)}"
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in (
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        if tensor.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} as value is {value.dtype}, got {tensor.dtype}"
            )
        if tensor.device != value.device:
            raise ValueError(
                f"{name} must be on the device of value {value.device}, got {tensor.device}"
            )
