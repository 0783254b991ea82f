"""Sampling points of deformable convolutions: of one layer, or of a chain of layers."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.finite import require_finite_values
from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.structures import Size
from deformable_detr.visualize.recording import modules_of, recorded


@dataclass(frozen=True)
class DeformConvCall:
    """Call of a deformable convolution (v1 or v2).

    Attributes:
        module: name of the module.
        offsets: (N, G * K * 2, H_out, W_out) in cells of the input: for each of G groups and K
            taps, row by row, (y, x), as torchvision orders them.
        geometry: geometry of the convolution, whose kernel has K taps.
        input_size: (height, width) of the layer's input.
    """

    module: str
    offsets: Tensor
    geometry: ConvGeometry
    input_size: Size

    @property
    def output_size(self) -> Size:
        """Size of the layer's output, (height, width)."""
        return self.offsets.shape[2], self.offsets.shape[3]

    def points(self, cell: tuple[int, int], *, image: int = 0, group: int = 0) -> Tensor:
        """Return the sampling points of an output cell.

        Args:
            cell: (row, column) of the output cell.
            image: index of the image in the batch.
            group: index of the offset group, in 0..G-1.

        Returns:
            (K, 2) points (x, y) in cells of the input; the center of the cell at row i and
            column j is (j + 0.5, i + 0.5).

        Raises:
            ValueError: `cell` is outside the output.
        """
        H, W = self.output_size
        row, column = cell
        if not (0 <= row < H and 0 <= column < W):
            raise ValueError(f"cell must be within the map of {H} x {W} cells, got {row},{column}")
        offsets = self.offsets[image].unflatten(0, (-1, *self.geometry.kernel_size, 2))[group]
        rows, columns = self.geometry.tap_positions(offsets)
        points = torch.stack((columns[..., row, column], rows[..., row, column]), dim=-1)
        return points.flatten(0, 1) + 0.5


def chained_points(calls: Sequence[DeformConvCall], cell: tuple[int, int]) -> Tensor:
    """Return the input points that a cell of the last layer samples (DCN paper, figure 6).

    Each sampling point of a layer is followed to the cell of the previous layer that contains it;
    points outside the map end there. Layers in between should be pointwise.

    Args:
        calls: calls in execution order; each output has the size of the next input.
        cell: (row, column) in the output of the last layer.

    Returns:
        (number of points, 2) points (x, y) in cells of the first layer's input: K for one layer,
        up to K^3 for three.

    Raises:
        ValueError: `calls` is empty, their sizes do not match, or `cell` is outside the output, or
            an offset is not finite.
    """
    if not calls:
        raise ValueError("calls must hold at least one deformable convolution, got none")
    for call in calls:
        require_finite_values(call.offsets, f"offsets of {call.module}")
    cells = [cell]
    points = torch.zeros(0, 2)
    for index, call in reversed(list(enumerate(calls))):
        points = torch.cat([points[:0].to(call.offsets), *(call.points(c) for c in cells)])
        if index == 0:
            break
        H, W = calls[index - 1].output_size
        if call.input_size != (H, W):
            raise ValueError(
                "calls must follow each other, got an output of "
                f"{(H, W)} cells of {calls[index - 1].module} before an input of "
                f"{call.input_size} cells of {call.module}"
            )
        cells = [(int(y), int(x)) for x, y in points.floor().tolist() if 0 <= x < W and 0 <= y < H]
    return points


def record_deform_convs(model: nn.Module) -> AbstractContextManager[list[DeformConvCall]]:
    """Record every call of a `DeformConv2d` or a `ModulatedDeformConv2d`.

    Returns:
        Context manager that yields a list, which grows with each call.
    """
    modules = modules_of(model, DeformConv2d) | modules_of(model, ModulatedDeformConv2d)
    return recorded(modules, _deform_conv_call)


@torch.no_grad()
def _deform_conv_call(
    name: str,
    module: DeformConv2d | ModulatedDeformConv2d,
    args: tuple[Tensor],
    kwargs: dict[str, Any],
    output: Tensor,
) -> DeformConvCall:
    offsets, _ = module.sampling(*args)
    size = (args[0].shape[2], args[0].shape[3])
    return DeformConvCall(name, offsets, module.geometry, input_size=size)
