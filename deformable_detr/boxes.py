"""Pure functions on boxes.

A box is four numbers: `cxcywh` is (center x, center y, width, height), `xyxy` is (left, top,
right, bottom). Coordinates are continuous: a box from 0 to 1 along x covers one pixel.
"""

import torch
from torch import Tensor

INVERSE_SIGMOID_EPS = 1e-5  # official code: logits stay within +-11.51
DINO_EPS = 1e-3  # official DINO: within +-6.91


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from center and size to corners."""
    cx, cy, width, height = boxes.unbind(-1)
    return torch.stack((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to center and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from COCO's (left, top, width, height) to corners."""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack((x, y, x + width, y + height), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) boxes from corners to COCO's (left, top, width, height)."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0, y0, x1 - x0, y1 - y0), dim=-1)


def clip_xyxy(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip (T, 4) xyxy boxes in pixels to an image of the given (height, width)."""
    height, width = size
    limits = boxes.new_tensor((width, height, width, height))
    return boxes.clamp(min=0).minimum(limits)


def area_xyxy(boxes: Tensor) -> Tensor:
    """Compute the area of (..., 4) xyxy boxes; negative extents are not clamped."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection, area_xyxy(first) + area_xyxy(second) - intersection


def iou_xyxy(first: Tensor, second: Tensor) -> Tensor:
    """Compute the intersection over union of (..., 4) xyxy boxes, with broadcasting."""
    intersection, union = _intersection_and_union(first, second)
    return intersection / union


def giou_xyxy(first: Tensor, second: Tensor) -> Tensor:
    """Compute the generalized intersection over union (Rezatofighi et al., 2019), in [-1, 1].

    Args:
        first: (..., 4) xyxy boxes of positive area.
        second: (..., 4) xyxy boxes of positive area, broadcast against `first`.

    Returns:
        (...) values: the IoU less the share of the hull that neither box covers.
    """
    intersection, union = _intersection_and_union(first, second)
    hull_size = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(
        first[..., :2], second[..., :2]
    )
    hull = hull_size.clamp(min=0).prod(-1)
    return intersection / union - (hull - union) / hull


def inverse_sigmoid(probability: Tensor, *, eps: float = INVERSE_SIGMOID_EPS) -> Tensor:
    """Compute the logit of values in [0, 1], finite at both ends: +-log(eps)."""
    probability = probability.clamp(0, 1)
    numerator = probability.clamp(min=eps)
    denominator = (1 - probability).clamp(min=eps)
    return (numerator / denominator).log()
