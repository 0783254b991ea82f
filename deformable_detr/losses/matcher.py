"""HungarianMatcher: one-to-one assignment of queries to objects at minimal cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from deformable_detr.boxes import cxcywh_to_xyxy, giou_xyxy
from deformable_detr.losses.focal import focal_cost
from deformable_detr.structures import Predictions, Target


@dataclass(frozen=True)
class Match:
    """Matched queries and objects of one image.

    Attributes:
        query_index: (T',) int64 indices of the matched queries, ascending; T' = min(Q, T).
        target_index: (T',) int64 index of the object matched to each query.
    """

    query_index: Tensor
    target_index: Tensor


class HungarianMatcher(nn.Module):
    """Matching by class, box distance and box overlap (DETR paper, section 3.1).

    Args:
        class_cost: weight of the focal class cost.
        l1_cost: weight of the L1 distance of cxcywh boxes.
        giou_cost: weight of the negative generalized IoU.
        focal_alpha: alpha of the class cost, the same as in the loss.
        focal_gamma: gamma of the class cost, the same as in the loss.
    """

    def __init__(
        self,
        *,
        class_cost: float,
        l1_cost: float,
        giou_cost: float,
        focal_alpha: float,
        focal_gamma: float,
    ) -> None:
        super().__init__()
        if not (class_cost or l1_cost or giou_cost):
            raise ValueError("class_cost, l1_cost or giou_cost must be above 0, got 0 for all")
        self.class_cost = class_cost
        self.l1_cost = l1_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @torch.no_grad()
    def forward(self, layers: Sequence[tuple[Predictions, Sequence[Target]]]) -> list[list[Match]]:
        """Match every layer's predictions with that layer's targets.

        The costs of all layers and images are copied to the host at once.

        Args:
            layers: for each layer, its predictions and one target per image.

        Returns:
            For each layer, one `Match` per image, on the device of the predictions.

        Raises:
            ValueError: a cost is not finite; the message names the layer and the image.
        """
        costs = [
            self.cost(predictions.logits[image], predictions.boxes[image], target)
            for predictions, targets in layers
            for image, target in enumerate(targets)
        ]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu()
        blocks = [
            block.view(cost.shape)
            for block, cost in zip(
                on_host.split([cost.numel() for cost in costs]), costs, strict=True
            )
        ]
        if not on_host.isfinite().all():
            raise ValueError(_describe_non_finite(blocks, len(layers)))
        matches = iter(_to_device([_assign(block) for block in blocks], costs[0].device))
        return [[next(matches) for _ in targets] for _, targets in layers]

    def cost(self, logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
        """Compute the cost of every pair of a query and an object in one image.

        Args:
            logits: (Q, K).
            boxes: (Q, 4) cxcywh in (0, 1).
            target: T objects.

        Returns:
            (Q, T) in float32 or wider.
        """
        dtype = torch.promote_types(boxes.dtype, torch.float32)
        logits, boxes = logits.to(dtype), boxes.to(dtype)
        wanted = target.boxes.to(dtype)
        by_class = focal_cost(logits, alpha=self.focal_alpha, gamma=self.focal_gamma)
        giou = giou_xyxy(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(wanted)[None])
        return (
            self.class_cost * by_class[:, target.labels]
            + self.l1_cost * torch.cdist(boxes, wanted, p=1)
            - self.giou_cost * giou
        )


def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    query_index, target_index = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(query_index), torch.from_numpy(target_index)


def _to_device(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> list[Match]:
    """Copy all pairs to the device at once."""
    together = torch.stack([torch.cat(side) for side in zip(*pairs, strict=True)]).to(device)
    counts = [len(query_index) for query_index, _ in pairs]
    return [Match(*part.unbind(0)) for part in together.split(counts, dim=1)]


def _describe_non_finite(blocks: list[Tensor], num_layers: int) -> str:
    images = len(blocks) // num_layers
    position = next(i for i, block in enumerate(blocks) if not block.isfinite().all())
    return (
        "predictions must be finite to be matched, got a cost that is not for image "
        f"{position % images} of the batch in layer {position // images} of {num_layers}; the "
        "model has diverged (learning rate, low precision) or an input is not finite"
    )
