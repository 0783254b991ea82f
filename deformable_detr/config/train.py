"""The loss and the training loop."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.base import FrozenModel, Positive, Probability


class LossConfig(FrozenModel):
    """Matching costs, loss weights and the focal loss, which both share."""

    class_cost: float = Field(2.0, ge=0)
    l1_cost: float = Field(5.0, ge=0)
    giou_cost: float = Field(2.0, ge=0)
    class_weight: float = Field(2.0, ge=0)
    l1_weight: float = Field(5.0, ge=0)
    giou_weight: float = Field(2.0, ge=0)
    focal_alpha: float = Field(0.25, gt=0, lt=1)
    focal_gamma: float = Field(2.0, ge=0)
    auxiliary: bool = True


class AdamWConfig(FrozenModel):
    """AdamW, with the learning rates of each role."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(2e-4, gt=0)
    lr_backbone: float = Field(2e-5, gt=0)
    lr_sampling: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)


class SGDConfig(FrozenModel):
    """SGD with momentum, with the learning rates of each role."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(2e-4, gt=0)
    lr_backbone: float = Field(2e-5, gt=0)
    lr_sampling: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    momentum: Probability = 0.9


OptimizerConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind")]


class StepScheduleConfig(FrozenModel):
    """The rate falls to a tenth after every `drop_epochs`."""

    kind: Literal["step"] = "step"
    drop_epochs: Positive = 40
    warmup_steps: int = Field(0, ge=0)


class CosineScheduleConfig(FrozenModel):
    """The rate falls to zero along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)


ScheduleConfig = Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")]


class TrainConfig(FrozenModel):
    """The loop.

    Every step sees `total_batch` images, whatever the number of processes, in forward passes of
    `micro_batch` images. Training ends after `epochs`, or after `max_steps` if that is sooner.
    The run is saved after every `checkpoint_every` steps, and after each epoch.
    `clip_norm` 0 does not clip. `ema_decay` 0 keeps no moving average. `precision` is that of the
    forward pass; boxes, losses and evaluation are in float32. `gradient_checkpointing` keeps the
    inputs of encoder and decoder layers only and computes the rest again for the gradient: the
    same numbers, less memory, more time. `channels_last` is the layout of images in memory.
    `deterministic` allows no operator whose result depends on chance, on a GPU either; on CPUs
    none does. Parameters of the roles in `freeze` stay as they are. With `sample_order: buckets`
    images of like shape share a micro-batch, for less padding; steps have the same samples.
    `timeout_s` is how long a data-loader worker may take for a batch, and a process of several may
    keep the others waiting, before the run ends.
    `tensorboard` writes what goes to `metrics.jsonl` as TensorBoard's events too.
    """

    epochs: Positive = 50
    max_steps: Positive | None = None
    total_batch: Positive = 32
    micro_batch: Positive = 2
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = StepScheduleConfig()
    clip_norm: float = Field(0.1, ge=0)
    ema_decay: Probability = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    deterministic: bool = False
    freeze: tuple[Literal["backbone", "backbone_sampling", "sampling", "default"], ...] = ()
    seed: int = Field(42, ge=0)
    sample_order: Literal["global_batches", "buckets", "official"] = "global_batches"
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    eval_every_epochs: Positive = 1
    validation_loss: bool = False
    timeout_s: float = Field(1800.0, gt=0)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.total_batch % self.micro_batch:
            raise ValueError(
                "total_batch must be a multiple of micro_batch, "
                f"got {self.total_batch} and {self.micro_batch}"
            )
        return self
