"""The focal loss (Lin et al., 2017) as a matching cost.

As a loss it is `torchvision.ops.sigmoid_focal_loss`.
"""

from torch import Tensor

_EPS = 1e-8  # official code


def focal_cost(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Compute the cost of matching a query to each class.

    Args:
        logits: (..., K).
        alpha: weight of the positive term; the negative term has 1 - alpha.
        gamma: exponent that reduces the loss of well-classified examples.

    Returns:
        (..., K): focal loss with the class as a positive minus its focal loss as a negative.
    """
    probability = logits.sigmoid()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + _EPS).log()
    positive = alpha * (1 - probability) ** gamma * -(probability + _EPS).log()
    return positive - negative
