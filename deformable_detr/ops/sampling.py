"""Sampling of features at the displaced taps of a convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.ops.geometry import ConvGeometry

_FAR = 1e6  # cells; exact in float32, and larger than any map


def finite_offsets(image_offsets: Tensor) -> Tensor:
    """Replace infinite and NaN offsets by ones far outside every map, without a gradient."""
    return image_offsets.nan_to_num(nan=_FAR, posinf=_FAR, neginf=-_FAR)


def sampled_taps(x: Tensor, image_offsets: Tensor, geometry: ConvGeometry) -> Tensor:
    """Sample features bilinearly at the displaced taps, zero outside the map.

    Args:
        x: (N, C, H, W) features.
        image_offsets: (N, k_h * k_w * 2, H_out, W_out) in cells of the map, (row, column)
            innermost.
        geometry: geometry of the convolution.

    Returns:
        (N, C, k_h, k_w, H_out, W_out).
    """
    N, C, H, W = x.shape
    k_h, k_w = geometry.kernel_size
    height, width = geometry.output_size((H, W))
    # Pad with zeros to powers of two: whole cells are then exact in the units of the grid, so that
    # zero offsets give the features themselves, with the derivative from above.
    sides = [2 ** (side - 1).bit_length() for side in (H, W)]
    x = F.pad(x, (0, sides[1] - W, 0, sides[0] - H))
    offsets = finite_offsets(image_offsets).view(N, k_h, k_w, 2, height, width)
    rows, columns = geometry.tap_positions(offsets)
    # grid_sample expects (x, y) in [-1, 1], where -1 and 1 are the outer edges of the map.
    grid = [
        (cells + 0.5) * (2 / side) - 1 for cells, side in ((columns, sides[1]), (rows, sides[0]))
    ]
    positions = torch.stack(grid, dim=-1).view(N, k_h * k_w * height, width, 2)
    return F.grid_sample(x, positions, align_corners=False).view(N, C, k_h, k_w, height, width)
