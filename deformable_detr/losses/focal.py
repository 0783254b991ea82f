"""The focal loss (Lin et al., 2017) as a matching cost.

As a loss it is `torchvision.ops.sigmoid_focal_loss`.
"""

from torch import Tensor

_EPS = 1e-8  # official code


def focal_cost(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """What matching a query to a class changes in the focal loss.

    Args:
        logits: (..., K).
        alpha: weight of the positive term; the negative one has 1 - alpha.
        gamma: exponent that plays down what is already right.

    Returns:
        (..., K): the loss of calling the class present less that of calling it absent.
    """
    probability = logits.sigmoid()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + _EPS).log()
    positive = alpha * (1 - probability) ** gamma * -(probability + _EPS).log()
    return positive - negative
