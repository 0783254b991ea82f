"""Losses and learning rates of the paper, as in the config, with optional changes."""

from typing import Any

from torch import nn

from deformable_detr.config.train import AdamWConfig, LossConfig
from deformable_detr.engine.optimizer import parameter_groups
from deformable_detr.losses.class_loss import FocalLoss
from deformable_detr.losses.criterion import LossWeights, SetCriterion
from deformable_detr.losses.matcher import HungarianMatcher

LOSS, OPTIMIZER = LossConfig(), AdamWConfig()
FOCAL = {"focal_alpha": LOSS.focal_alpha, "focal_gamma": LOSS.focal_gamma}


def paper_matcher(**changes: float) -> HungarianMatcher:
    costs = {name: getattr(LOSS, name) for name in ("class_cost", "l1_cost", "giou_cost")}
    return HungarianMatcher(**costs | FOCAL | changes)


def paper_criterion(**changes: Any) -> SetCriterion:
    weights = LossWeights(class_=LOSS.class_weight, l1=LOSS.l1_weight, giou=LOSS.giou_weight)
    options = {
        "weights": weights,
        "class_loss": FocalLoss(alpha=LOSS.focal_alpha, gamma=LOSS.focal_gamma),
        "auxiliary": True,
        "weigh_proposals": True,
        "one_class_proposals": True,
        "mimicking_weight": 0.0,
        "official_divisor": False,
    }
    return SetCriterion(paper_matcher(), **options | changes)


def criterion_for(model: nn.Module) -> SetCriterion:
    """Return the paper's criterion, with a weight for feature mimicking if the model has it."""
    has_mimicking = getattr(model, "mimicking", None) is not None
    return paper_criterion(mimicking_weight=0.1 if has_mimicking else 0.0)


def paper_groups(model: nn.Module, **changes: Any) -> list[dict[str, Any]]:
    rates = {
        "backbone": OPTIMIZER.lr_backbone,
        "sampling": OPTIMIZER.lr_sampling,
        "backbone_sampling": OPTIMIZER.lr_backbone / 10,
    }
    options = {"lr": OPTIMIZER.lr, "lr_by_role": rates, "weight_decay": OPTIMIZER.weight_decay}
    return parameter_groups(model, **options | changes)
