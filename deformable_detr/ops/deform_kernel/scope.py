"""Reading the scope: where each tap lies in it, and the kernel that an image reads."""

import torch
from torch import Tensor

from deformable_detr.ops.deform_kernel.interpolation import linear_weights
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.structures import Size


def scope_size_of(weight: Tensor) -> Size:
    """(S_h, S_w) of a (C, 1, S_h, S_w) weight."""
    return weight.shape[2], weight.shape[3]


def kernel_coordinates(
    rotation: Tensor, scope_size: Size, geometry: ConvGeometry, *, clip_to_scope: bool
) -> tuple[Tensor, Tensor]:
    """Coordinates in the scope at which the taps are read.

    Args:
        rotation: (N, R * k_h * k_w * 2, ...) as `deform_kernel_conv2d` has it.
        scope_size: (S_h, S_w).
        geometry: its kernel size counts.
        clip_to_scope: keep the coordinates in [0, S - 1].

    Returns:
        Rows and columns, (N, R, k_h * k_w, ...) each; the first cell's center is 0.
    """
    k_h, k_w = geometry.kernel_size
    offsets = rotation.unflatten(1, (-1, k_h * k_w, 2))
    taps = torch.arange(k_h * k_w, device=rotation.device)
    coordinates = []
    for axis, tap_index in enumerate((taps // k_w, taps % k_w)):
        start = (scope_size[axis] - geometry.kernel_size[axis]) / 2
        base = tap_index.to(rotation.dtype) + start
        base = base.view(-1, *[1] * (rotation.ndim - 2))
        coordinate = offsets[:, :, :, axis] + base
        coordinates.append(_clip(coordinate, scope_size[axis]) if clip_to_scope else coordinate)
    return coordinates[0], coordinates[1]


def _clip(coordinates: Tensor, size: int) -> Tensor:
    """Clamp to [0, size - 1]; a tap on the edge keeps its gradient, to find its way back."""
    clipped = coordinates.detach().clamp(0, size - 1)
    is_free = (coordinates == clipped) & (size > 1)
    return torch.where(is_free, coordinates, clipped)


def sample_scope(
    weight: Tensor, rotation: Tensor, kernel_size: Size, *, clip_to_scope: bool = True
) -> Tensor:
    """Read one kernel an image from the scope (DK paper, global mode).

    Args:
        weight: (C, 1, S_h, S_w) kernel values.
        rotation: (N, R * k_h * k_w * 2) offsets as `deform_kernel_conv2d` has them.
        kernel_size: (k_h, k_w).
        clip_to_scope: keep the coordinates in [0, S - 1].

    Returns:
        (N, C, k_h, k_w) kernels.
    """
    C = weight.shape[0]
    scope = scope_size_of(weight)
    rows, columns = kernel_coordinates(
        rotation, scope, ConvGeometry(kernel_size), clip_to_scope=clip_to_scope
    )
    N, R, _ = rows.shape
    row_weights, column_weights = linear_weights(rows, scope[0]), linear_weights(columns, scope[1])
    coefficients = row_weights[:, :, :, None] * column_weights[:, :, None]
    kernels = torch.einsum("grij,nrijt->ngrt", weight.reshape(C // R, R, *scope), coefficients)
    return kernels.reshape(N, C, *kernel_size)
