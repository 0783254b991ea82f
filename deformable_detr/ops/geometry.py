"""Geometry of a convolution: positions of its taps, and size of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from deformable_detr.structures import Size

IntPair = int | tuple[int, int]  # for both axes, or (vertical, horizontal)


def pair(value: IntPair) -> tuple[int, int]:
    """Return a number as a pair for both axes, or the pair itself."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class ConvGeometry(NamedTuple):
    """Kernel size, stride, padding and dilation; every pair is (vertical, horizontal)."""

    kernel_size: Size
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(
        cls, kernel_size: IntPair, stride: IntPair, padding: IntPair, dilation: IntPair
    ) -> "ConvGeometry":
        """Build the geometry from the arguments of `nn.Conv2d`."""
        return cls(pair(kernel_size), pair(stride), pair(padding), pair(dilation))

    @property
    def reach(self) -> Size:
        """Distance of the last tap from the first, in cells."""
        return tuple(  # type: ignore[return-value]  # two numbers, from pairs
            step * (size - 1) for step, size in zip(self.dilation, self.kernel_size, strict=True)
        )

    def output_size(self, size: Size) -> Size:
        """Return the output size for an input of `size`; below 1 if the kernel is too large."""
        return tuple(  # type: ignore[return-value]  # two numbers, from pairs
            (cells + 2 * padding - reach - 1) // stride + 1
            for cells, padding, reach, stride in zip(
                size, self.padding, self.reach, self.stride, strict=True
            )
        )

    def tap_cells(self, axis: int, num_outputs: int, device: torch.device) -> Tensor:
        """Return the (k, num_outputs) rows (axis 0) or columns (axis 1) of the taps per output."""
        taps = torch.arange(self.kernel_size[axis], device=device) * self.dilation[axis]
        outputs = torch.arange(num_outputs, device=device) * self.stride[axis]
        return taps[:, None] + (outputs - self.padding[axis])

    def tap_positions(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of taps that are displaced.

        Args:
            offsets: (..., k_h, k_w, 2, H_out, W_out) in cells of the input, row before column.

        Returns:
            Rows and columns, (..., k_h, k_w, H_out, W_out) each.
        """
        height, width = offsets.shape[-2:]
        rows = self.tap_cells(0, height, offsets.device)[:, None, :, None]
        columns = self.tap_cells(1, width, offsets.device)[:, None]
        return offsets[..., 0, :, :] + rows, offsets[..., 1, :, :] + columns
