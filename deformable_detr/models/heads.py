"""Class and box heads, and their initialization."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from deformable_detr.boxes import INVERSE_SIGMOID_EPS, inverse_sigmoid
from deformable_detr.layers.mlp import MLP
from deformable_detr.layers.precision import at_least_float32, without_autocast

PRIOR_PROB = 0.01  # focal loss paper, section 3.3
CenterOffset = Literal["image", "box"]
_INVERSE_SLOPE = 4.0  # of the sigmoid at 0
_INITIAL_SIZE_LOGIT = -2.0  # official code: initial boxes are 0.12 of the image wide and high


class ClassHead(nn.Linear):
    """Linear layer (..., C) -> (..., K) logits; every class starts at probability 0.01."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__(embed_dim, num_classes)
        nn.init.constant_(self.bias, -math.log((1 - PRIOR_PROB) / PRIOR_PROB))


class BoxHead(nn.Module):
    """MLP (..., C) -> (..., 4) cxcywh in logit space, relative to a reference; starts at zero."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.mlp = MLP(embed_dim, embed_dim, 4, num_layers=3)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @property
    def output(self) -> nn.Linear:
        """The last layer; its bias holds (center x, center y, width, height)."""
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, features: Tensor) -> Tensor:
        """Compute the offsets in float32 or wider: boxes never have low precision."""
        with without_autocast(features.device):
            return self.mlp(at_least_float32(features))


def initial_size_logits(num_heads: int, *, two_stage: bool) -> list[float]:
    """Return the initial width and height, as logits, of each box head (official initialization).

    Where the references are boxes, they already have a size, which a head must not shift. Only
    the first head of a detector whose queries are points therefore starts with its own size.
    """
    first = 0.0 if two_stage else _INITIAL_SIZE_LOGIT
    return [first] + [0.0] * (num_heads - 1)


def in_logit_space(offsets: Tensor, sizes: Tensor, center_offset: CenterOffset) -> Tensor:
    """Convert a head's output to offsets in logit space.

    In units of the box, an offset d of the center moves it by about d times the size of the
    reference, as in R-CNN (Girshick et al., 2014, appendix C): the slope of the sigmoid is 1/4 at
    the center of the image. So a small object asks no finer numbers of the head than a large one.

    Args:
        offsets: (..., 4) output of a head.
        sizes: (..., 2) width and height of the references, relative to the image.
        center_offset: unit of the first two numbers, see above.
    """
    if center_offset == "image":
        return offsets
    center, size = offsets.split(2, dim=-1)
    return torch.cat((_INVERSE_SLOPE * sizes.detach() * center, size), dim=-1)


def boxes_from_offsets(
    offsets: Tensor,
    reference_points: Tensor,
    *,
    eps: float = INVERSE_SIGMOID_EPS,
    center_offset: CenterOffset = "image",
) -> Tensor:
    """Compute boxes from a head's output and the references to which it is relative.

    Args:
        offsets: (N, Q, 4) output of a head.
        reference_points: (N, Q, 2) points, added to the center only, or (N, Q, 4) boxes.
        eps: distance that references keep from 0 and 1, see `inverse_sigmoid`.
        center_offset: see `in_logit_space`; "image" for points.

    Returns:
        (N, Q, 4) cxcywh in (0, 1).
    """
    offsets = in_logit_space(offsets, reference_points[..., 2:], center_offset)
    reference = inverse_sigmoid(reference_points, eps=eps)
    if reference.shape[-1] == 2:
        reference = nn.functional.pad(reference, (0, 2))
    return (offsets + reference).sigmoid()
