"""Weights of linear interpolation along one axis."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_OUTSIDE = -2.0  # more than one cell from every cell


def linear_weights(coordinates: Tensor, size: int) -> Tensor:
    """Compute the linear interpolation weights max(0, 1 - |coordinate - cell|) of `size` cells.

    At the center of a cell the derivative is the one from above, and at the last cell the one from
    below, so that the gradient moves a sample at the edge of the scope inwards or not at all.

    Args:
        coordinates: (N, R, ...); 0 is the center of the first cell.
        size: number of cells.

    Returns:
        (N, R, size, ...).
    """
    low = _low_cells(coordinates, size)
    high_share = (coordinates - low).unsqueeze(2)
    steps = _cells_of_axis(coordinates, size) - low.unsqueeze(2)
    nothing = coordinates.new_zeros(())
    return torch.where(steps == 0, 1 - high_share, torch.where(steps == 1, high_share, nothing))


def _low_cells(coordinates: Tensor, size: int) -> Tensor:
    """Return the lower of the two cells between which a sample lies, as a float."""
    coordinates = coordinates.detach()
    return torch.where(coordinates == size - 1, size - 2, coordinates.floor())


def _cells_of_axis(coordinates: Tensor, size: int) -> Tensor:
    """Return the coordinates of the cells, along the axis that `linear_weights` adds."""
    cells = torch.arange(size, device=coordinates.device, dtype=coordinates.dtype)
    return cells.view(-1, *[1] * (coordinates.ndim - 2))


class LinearWeights(torch.autograd.Function):
    """`linear_weights` with few passes over memory."""

    @staticmethod
    def forward(ctx: Any, coordinates: Tensor, size: int) -> Tensor:
        """Compute the weights; those of NaN are zero, like far outside."""
        coordinates = coordinates.nan_to_num(nan=_OUTSIDE)
        ctx.size = size
        ctx.save_for_backward(coordinates)
        distances = coordinates.unsqueeze(2) - _cells_of_axis(coordinates, size)
        return distances.abs_().neg_().add_(1).clamp_(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_weights: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the coordinates."""
        (coordinates,) = ctx.saved_tensors
        low = _low_cells(coordinates, ctx.size).clamp_(-2, ctx.size).long()
        return _grad_of_cell(grad_weights, low + 1) - _grad_of_cell(grad_weights, low), None


def _grad_of_cell(grad_weights: Tensor, cells: Tensor) -> Tensor:
    size = grad_weights.shape[2]
    grad = grad_weights.gather(2, cells.clamp(0, size - 1).unsqueeze(2)).squeeze(2)
    return grad * ((cells >= 0) & (cells < size))
