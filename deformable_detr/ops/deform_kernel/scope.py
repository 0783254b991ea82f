"""Reading of the scope: coordinates of the taps, and kernels per image."""

import torch
from torch import Tensor

from deformable_detr.ops.deform_kernel.interpolation import linear_weights
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.structures import Size


def scope_size_of(weight: Tensor) -> Size:
    """Return (S_h, S_w) of a (C, 1, S_h, S_w) weight."""
    return weight.shape[2], weight.shape[3]


def kernel_coordinates(
    rotation: Tensor, scope_size: Size, geometry: ConvGeometry, *, clip_to_scope: bool
) -> tuple[Tensor, Tensor]:
    """Compute the coordinates in the scope at which the taps are read.

    Args:
        rotation: (N, R * k_h * k_w * 2, ...) as in `deform_kernel_conv2d`.
        scope_size: (S_h, S_w).
        geometry: geometry of the convolution; only its kernel size is used.
        clip_to_scope: keep the coordinates in [0, S - 1].

    Returns:
        Rows and columns, (N, R, k_h * k_w, ...) each; 0 is the center of the first cell.
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
    """Clamp to [0, size - 1]; a tap on the edge keeps its gradient, and so can move inwards."""
    clipped = coordinates.detach().clamp(0, size - 1)
    is_free = (coordinates == clipped) & (size > 1)
    return torch.where(is_free, coordinates, clipped)


def sample_scope(
    weight: Tensor, rotation: Tensor, kernel_size: Size, *, clip_to_scope: bool = True
) -> Tensor:
    """Read one kernel per image from the scope (global mode of the Deformable Kernels paper).

    Args:
        weight: (C, 1, S_h, S_w) kernel values.
        rotation: (N, R * k_h * k_w * 2) offsets as in `deform_kernel_conv2d`.
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
