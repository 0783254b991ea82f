"""Config -> losses, order of samples, optimiser and schedule."""

from torch.optim import Optimizer
from typing_extensions import assert_never

from deformable_detr.config import (
    AdamWConfig,
    CosineScheduleConfig,
    LossConfig,
    OptimizerConfig,
    SGDConfig,
    StepScheduleConfig,
    TrainConfig,
)
from deformable_detr.data.samplers import DistributedOrderSampler, MicroBatchSampler, StepSampler
from deformable_detr.engine.optimizer import HasParameterRoles, adamw, parameter_groups, sgd
from deformable_detr.engine.schedule import CosineSchedule, Schedule, StepSchedule
from deformable_detr.losses.criterion import LossWeights, SetCriterion
from deformable_detr.losses.matcher import HungarianMatcher


def build_criterion(config: LossConfig) -> SetCriterion:
    """The losses and their matcher."""
    matcher = HungarianMatcher(
        class_cost=config.class_cost,
        l1_cost=config.l1_cost,
        giou_cost=config.giou_cost,
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
    )
    return SetCriterion(
        matcher,
        weights=LossWeights(
            class_=config.class_weight, l1=config.l1_weight, giou=config.giou_weight
        ),
        focal_alpha=config.focal_alpha,
        focal_gamma=config.focal_gamma,
        auxiliary=config.auxiliary,
    )


def build_sampler(
    config: TrainConfig, *, num_samples: int, rank: int, world_size: int
) -> StepSampler:
    """The order of training samples."""
    match config.sample_order:
        case "global_batches":
            return MicroBatchSampler(
                num_samples,
                total_batch=config.total_batch,
                micro_batch=config.micro_batch,
                rank=rank,
                world_size=world_size,
                seed=config.seed,
            )
        case "official":
            return DistributedOrderSampler(
                num_samples,
                total_batch=config.total_batch,
                micro_batch=config.micro_batch,
                rank=rank,
                world_size=world_size,
            )
        case _:
            assert_never(config.sample_order)


def build_optimizer(config: OptimizerConfig, model: HasParameterRoles) -> Optimizer:
    """The optimiser, with a learning rate for each role of the model's parameters."""
    groups = parameter_groups(
        model,
        lr=config.lr,
        lr_by_role={"backbone": config.lr_backbone, "sampling": config.lr_sampling},
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
    """The learning rate's factor as a function of the step."""
    match config:
        case StepScheduleConfig():
            return StepSchedule(
                drop_steps=config.drop_epochs * steps_per_epoch, warmup_steps=config.warmup_steps
            )
        case CosineScheduleConfig():
            return CosineSchedule(total_steps=total_steps, warmup_steps=config.warmup_steps)
        case _:
            assert_never(config)
