"""Independent implementation of the official criterion from its formulas, as an oracle.

It uses plain loops over images, queries and objects, in the precision of the inputs, which is
float64 in the tests, and no code of `deformable_detr`. Names and suffixes are the official ones:
"" is the last decoder layer, "_0" the first, "_enc" the encoder's proposals.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

COST_CLASS, COST_BBOX, COST_GIOU = 2.0, 5.0, 2.0
COST_ALPHA = 0.25  # fixed in the official matcher
GAMMA = 2
WEIGHTS = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}

Outputs = dict[str, tuple[Tensor, Tensor]]  # by suffix: logits (N, Q, K), boxes (N, Q, 4) cxcywh
Objects = tuple[list[int], list[list[float]]]  # of one image: labels, boxes cxcywh
Pairs = list[tuple[int, int]]  # (query, object)


@dataclass
class OfficialResult:
    """Values and matches by the official names; `total` is weighted."""

    values: dict[str, Tensor]
    matches: dict[str, list[Pairs]]
    total: Tensor


def official_criterion(
    outputs: Outputs,
    targets: list[Objects],
    *,
    focal_alpha: float = 0.25,
    auxiliary: bool = True,
) -> OfficialResult:
    """Compute all losses and metrics of one process; intermediate layers only with `auxiliary`."""
    num_boxes = max(float(sum(len(labels) for labels, _ in targets)), 1.0)
    values: dict[str, Tensor] = {}
    matches: dict[str, list[Pairs]] = {}
    for suffix, (logits, boxes) in outputs.items():
        if not auxiliary and suffix not in ("", "_enc"):
            continue
        wanted = targets
        if suffix == "_enc":
            wanted = [([0] * len(labels), boxes_of) for labels, boxes_of in targets]
        matches[suffix] = [
            match_image(logits[n], boxes[n], labels, boxes_of)
            for n, (labels, boxes_of) in enumerate(wanted)
        ]
        layer = _layer_values(logits, boxes, wanted, matches[suffix], num_boxes, focal_alpha)
        if suffix:
            del layer["class_error"]
        values |= {name + suffix: value for name, value in layer.items()}
    weights = _weights(len(outputs), auxiliary=auxiliary)
    total = sum(
        (weights[name] * values[name] for name in values if name in weights), torch.zeros(())
    )
    return OfficialResult(values, matches, total)


def _weights(num_outputs: int, *, auxiliary: bool) -> dict[str, float]:
    """Return the loss weights; without auxiliary losses the encoder has none either."""
    suffixes = [""]
    if auxiliary:
        suffixes += [f"_{index}" for index in range(num_outputs)] + ["_enc"]
    return {name + suffix: weight for suffix in suffixes for name, weight in WEIGHTS.items()}


def match_image(
    logits: Tensor, boxes: Tensor, labels: list[int], wanted: list[list[float]]
) -> Pairs:
    """Compute the assignment of minimal cost in one image."""
    return [
        (int(query), int(index))
        for query, index in zip(
            *linear_sum_assignment(cost_matrix(logits, boxes, labels, wanted)), strict=True
        )
    ]


def cost_matrix(
    logits: Tensor, boxes: Tensor, labels: list[int], wanted: list[list[float]]
) -> np.ndarray:
    """Return the (Q, T) float64 costs."""
    rows, queries = logits.detach().double().tolist(), boxes.detach().double().tolist()
    cost = np.zeros((len(rows), len(labels)))
    for query, (row, box) in enumerate(zip(rows, queries, strict=True)):
        for index, (label, other) in enumerate(zip(labels, wanted, strict=True)):
            p = 1 / (1 + math.exp(-row[label]))
            negative = (1 - COST_ALPHA) * p**GAMMA * -math.log(1 - p + 1e-8)
            positive = COST_ALPHA * (1 - p) ** GAMMA * -math.log(p + 1e-8)
            distance = sum(abs(a - b) for a, b in zip(box, other, strict=True))
            overlap = float(giou(torch.tensor(box).double(), torch.tensor(other).double()))
            cost[query, index] = (
                COST_BBOX * distance + COST_CLASS * (positive - negative) - COST_GIOU * overlap
            )
    return cost


def giou(box: Tensor, other: Tensor) -> Tensor:
    """Compute the generalized IoU of two boxes cxcywh."""
    a, b = _corners(box), _corners(other)
    zero = box.new_zeros(())
    width = torch.maximum(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]), zero)
    height = torch.maximum(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]), zero)
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull_width = torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])
    hull = hull_width * (torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1]))
    return both / union - (hull - union) / hull


def _corners(box: Tensor) -> tuple[Tensor, ...]:
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def focal_loss(logits: Tensor, wanted: Tensor, num_boxes: float, alpha: float) -> Tensor:
    """Average over the queries of (..., Q, K), sum over the rest, and divide by `num_boxes`."""
    p = logits.sigmoid()
    cross_entropy = -(wanted * p.log() + (1 - wanted) * (1 - p).log())
    right = wanted * p + (1 - wanted) * (1 - p)
    weight = wanted * alpha + (1 - wanted) * (1 - alpha)
    return (weight * (1 - right) ** GAMMA * cross_entropy).mean(-2).sum() / num_boxes


def _layer_values(
    logits: Tensor,
    boxes: Tensor,
    targets: list[Objects],
    matches: list[Pairs],
    num_boxes: float,
    focal_alpha: float,
) -> dict[str, Tensor]:
    N, Q, K = logits.shape
    wanted = torch.zeros(N, Q, K, dtype=logits.dtype)
    distance = overlap = boxes.sum() * 0.0
    right = pairs = 0
    for n, (labels, boxes_of) in enumerate(targets):
        for query, index in matches[n]:
            wanted[n, query, labels[index]] = 1.0
            other = torch.tensor(boxes_of[index], dtype=boxes.dtype)
            distance = distance + sum((boxes[n, query, i] - other[i]).abs() for i in range(4))
            overlap = overlap + 1 - giou(boxes[n, query], other)
            right += int(logits[n, query].argmax() == labels[index])
            pairs += 1
    counts = [
        abs(sum(int(row.argmax()) != K - 1 for row in logits[n]) - len(labels))
        for n, (labels, _) in enumerate(targets)
    ]
    return {
        "loss_ce": focal_loss(logits, wanted, num_boxes, focal_alpha) * Q,
        "loss_bbox": distance / num_boxes,
        "loss_giou": overlap / num_boxes,
        "class_error": torch.tensor(100 - 100 * right / pairs if pairs else 100.0),
        "cardinality_error": torch.tensor(sum(counts) / N),
    }
