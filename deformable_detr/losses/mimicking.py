"""Losses of feature mimicking (Deformable ConvNets v2, section 3.3)."""

import torch.nn.functional as F
from torch import Tensor

from deformable_detr.layers.precision import at_least_float32
from deformable_detr.models.mimicking import MimicFeatures


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum one minus the cosine similarity of the two features over the regions.

    Args:
        student: (R, F).
        teacher: (R, F), of the same regions; it gets a gradient too.

    Returns:
        A scalar in [0, 2 R], float32 or wider; zero, with a gradient of zeros, if R is 0.

    Raises:
        ValueError: shapes disagree.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            "teacher must have the shape (R, F) of student, got "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}"
        )
    cosine = F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1)
    return (1 - cosine).sum()


def mimicking_losses(features: MimicFeatures, num_boxes: Tensor | float) -> dict[str, Tensor]:
    """Compute the two unweighted losses of mimicking.

    Args:
        features: features of the matched queries of a batch and of the crops of their objects.
        num_boxes: divisor of the sums, as in `SetCriterion`.

    Returns:
        "loss_mimic", and "loss_mimic_class", the cross-entropy of the crops' classes.
    """
    logits = at_least_float32(features.logits)
    class_loss = F.cross_entropy(logits, features.labels, reduction="sum")
    return {
        "loss_mimic": mimic_loss(features.student, features.teacher) / num_boxes,
        "loss_mimic_class": class_loss / num_boxes,
    }
