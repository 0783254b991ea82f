"""Builders turn a config into objects; the only place that knows every alternative."""

from deformable_detr.builders.data import (
    build_dataset,
    build_eval_transform,
    build_train_transform,
    clips_in_evaluation,
    largest_size,
)
from deformable_detr.builders.model import (
    build_backbone,
    build_model,
    build_neck,
    build_position,
    build_queries,
)
from deformable_detr.builders.training import (
    build_criterion,
    build_optimizer,
    build_sampler,
    build_schedule,
)

__all__ = [
    "build_backbone",
    "build_criterion",
    "build_dataset",
    "build_eval_transform",
    "build_model",
    "build_neck",
    "build_optimizer",
    "build_position",
    "build_queries",
    "build_sampler",
    "build_schedule",
    "build_train_transform",
    "clips_in_evaluation",
    "largest_size",
]
