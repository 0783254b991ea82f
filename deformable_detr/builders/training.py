"""Builders of the criterion, the sampler, the optimizer and the schedule."""

import numpy as np
import numpy.typing as npt
from torch.optim import Optimizer
from typing_extensions import assert_never

from deformable_detr.arguments import checked
from deformable_detr.builders.data import fixed_micro_batch
from deformable_detr.config import (
    AdamWConfig,
    ConfigError,
    CosineScheduleConfig,
    FocalLossConfig,
    LossConfig,
    OptimizerConfig,
    QualityLossConfig,
    RunConfig,
    SGDConfig,
    StepScheduleConfig,
)
from deformable_detr.data.samplers import (
    BatchPlan,
    BucketSampler,
    DistributedOrderSampler,
    MicroBatchSampler,
    StepSampler,
)
from deformable_detr.engine.optimizer import HasParameterRoles, adamw, parameter_groups, sgd
from deformable_detr.engine.schedule import CosineSchedule, Schedule, StepSchedule
from deformable_detr.losses.class_loss import ClassLoss, FocalLoss, QualityLoss
from deformable_detr.losses.criterion import LossWeights, SetCriterion
from deformable_detr.losses.matcher import HungarianMatcher

OFFICIAL_COST_ALPHA = 0.25  # constants of the official matcher
OFFICIAL_COST_GAMMA = 2.0
MIMICKING_WEIGHT = 0.1  # of both mimicking losses (Deformable ConvNets v2)
OFFSET_RATE = 0.1  # offset generators' share of the backbone's learning rate (Zhu, CVPR 2019)


@checked
def build_criterion(config: RunConfig) -> SetCriterion:
    """Build the losses of a run, with their matcher."""
    loss = config.loss
    is_official = config.match_official
    matcher = HungarianMatcher(
        class_cost=loss.class_cost,
        l1_cost=loss.l1_cost,
        giou_cost=loss.giou_cost,
        focal_alpha=OFFICIAL_COST_ALPHA if is_official else loss.focal_alpha,
        focal_gamma=OFFICIAL_COST_GAMMA if is_official else loss.focal_gamma,
    )
    return SetCriterion(
        matcher,
        weights=LossWeights(class_=loss.class_weight, l1=loss.l1_weight, giou=loss.giou_weight),
        class_loss=_build_class_loss(loss),
        class_weights=loss.class_weights,
        auxiliary=loss.auxiliary,
        weigh_proposals=loss.auxiliary or not is_official,
        one_class_proposals=(
            config.model.queries.kind == "two_stage"
            and config.model.queries.ranking == "objectness"
        ),
        mimicking_weight=0.0 if config.model.mimicking is None else MIMICKING_WEIGHT,
        official_divisor=is_official,
    )


def _build_class_loss(config: LossConfig) -> ClassLoss:
    match config.class_loss:
        case FocalLossConfig():
            return FocalLoss(alpha=config.focal_alpha, gamma=config.focal_gamma)
        case QualityLossConfig() as quality:
            return QualityLoss(
                score_power=quality.score_power,
                iou_power=quality.iou_power,
                gamma=quality.gamma,
                floor=quality.floor,
            )
        case _:
            assert_never(config.class_loss)


def build_sampler(
    config: RunConfig,
    *,
    num_samples: int,
    rank: int,
    world_size: int,
    aspect_ratios: npt.NDArray[np.float64] | None = None,
    factors: npt.NDArray[np.float64] | None = None,
) -> StepSampler:
    """Build the sampler, which defines the order of a run's training samples.

    Args:
        config: config of the run.
        num_samples: number of samples of the data set, repetitions included.
        rank: rank of this process.
        world_size: number of processes.
        aspect_ratios: (N,) height / width of each image; needed for `sample_order: buckets` only.
        factors: (N,) repeat factor of each image, for `data.repeat_threshold`; else None.

    Raises:
        ConfigError: the official order is to repeat images.
    """
    train = config.train
    plan = BatchPlan(
        total_batch=train.total_batch,
        micro_batch=fixed_micro_batch(config),
        rank=rank,
        world_size=world_size,
    )
    if factors is not None:
        factors = np.resize(factors, num_samples)  # as often as samples are repeated
    order = "official" if config.match_official else train.sample_order
    match order:
        case "global_batches":
            return MicroBatchSampler(num_samples, plan, seed=train.seed, factors=factors)
        case "buckets":
            if aspect_ratios is None:
                raise ValueError("aspect_ratios must be given for sample_order: buckets, got none")
            ratios = np.resize(aspect_ratios, num_samples)  # as often as samples are repeated
            return BucketSampler(ratios, plan, seed=train.seed, factors=factors)
        case "official":
            if factors is not None:
                raise ConfigError(
                    "data.repeat_threshold: must be null in the official order of samples, which "
                    "shows each image once; set train.sample_order=global_batches and "
                    "match_official=false"
                )
            return DistributedOrderSampler(num_samples, plan)
        case _:
            assert_never(order)


def build_optimizer(config: OptimizerConfig, model: HasParameterRoles) -> Optimizer:
    """Build the optimizer, with one learning rate per role of the model's parameters."""
    groups = parameter_groups(
        model,
        lr=config.lr,
        lr_by_role={
            "backbone": config.lr_backbone,
            "sampling": config.lr_sampling,
            "backbone_sampling": OFFSET_RATE * config.lr_backbone,
        },
        weight_decay=config.weight_decay,
    )
    match config:
        case AdamWConfig():
            return adamw(groups)
        case SGDConfig():
            return sgd(groups, momentum=config.momentum)
        case _:
            assert_never(config)


def build_schedule(
    config: StepScheduleConfig | CosineScheduleConfig, *, steps_per_epoch: int, total_steps: int
) -> Schedule:
    """Build the schedule: the factor of the learning rate as a function of the step."""
    match config:
        case StepScheduleConfig():
            return StepSchedule(
                drop_steps=config.drop_epochs * steps_per_epoch, warmup_steps=config.warmup_steps
            )
        case CosineScheduleConfig():
            return CosineSchedule(total_steps=total_steps, warmup_steps=config.warmup_steps)
        case _:
            assert_never(config)
