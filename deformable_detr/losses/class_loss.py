"""Class losses: focal loss, and losses whose targets know the quality of the box."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


class ClassLoss(Protocol):
    """Sum of a class loss over queries and classes."""

    def __call__(
        self, logits: Tensor, one_hot: Tensor, iou: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            logits: (N, Q, K).
            one_hot: (N, Q, K), 1 at the class of the object that a query is matched with, else 0.
            iou: (N, Q) IoU of a query's box with its object, in [0, 1]; 0 if it has none.
            class_weights: (K,) factors of the losses of each class; None for 1.

        Returns:
            A scalar.
        """
        ...


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss (Lin et al., 2017), which does not look at boxes.

    Attributes:
        alpha: weight of objects; background has 1 - alpha.
        gamma: exponent that reduces the loss of well-classified examples.
    """

    alpha: float
    gamma: float

    def __call__(
        self, logits: Tensor, one_hot: Tensor, iou: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Compute the loss, see `ClassLoss`."""
        losses = sigmoid_focal_loss(logits, one_hot, alpha=self.alpha, gamma=self.gamma)
        return losses.sum() if class_weights is None else (losses * class_weights).sum()


@dataclass(frozen=True)
class QualityLoss:
    """Binary cross-entropy with targets that grow with the IoU of the box.

    A matched query with score p and IoU u has the target max(floor, p^a u^b), without gradient, and
    weight 1; all others have the target 0 and weight p^gamma. With (a, b, gamma, floor) =
    (0.25, 0.75, 2, 0.01) it is the IoU-aware loss of Align-DETR (Cai et al., 2023), with
    (0, 1.5, 1.5, 0) the matchability-aware loss of DEIM (Huang et al., 2025).

    Attributes:
        score_power: a.
        iou_power: b.
        gamma: exponent that reduces the loss of background with low scores.
        floor: least target of a matched query.
    """

    score_power: float
    iou_power: float
    gamma: float
    floor: float

    def __call__(
        self, logits: Tensor, one_hot: Tensor, iou: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Compute the loss, see `ClassLoss`."""
        score = logits.detach().sigmoid()
        quality = score**self.score_power * iou.detach()[..., None] ** self.iou_power
        target = one_hot * quality.clamp(min=self.floor)
        weight = one_hot + (1 - one_hot) * score**self.gamma
        if class_weights is not None:
            weight = weight * class_weights
        return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")
