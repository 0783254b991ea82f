"""The loss and the training loop."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.base import FrozenModel, Positive, Probability


class LossConfig(FrozenModel):
    """Matching costs, loss weights and the focal loss, which both share."""

    class_cost: float = Field(2.0, ge=0)
    """Weight of the focal class cost in matching."""

    l1_cost: float = Field(5.0, ge=0)
    """Weight of the L1 distance of boxes in matching."""

    giou_cost: float = Field(2.0, ge=0)
    """Weight of the generalized IoU of boxes in matching."""

    class_weight: float = Field(2.0, ge=0)
    """Weight of the focal class loss."""

    l1_weight: float = Field(5.0, ge=0)
    """Weight of the L1 loss of boxes."""

    giou_weight: float = Field(2.0, ge=0)
    """Weight of the generalized IoU loss of boxes."""

    focal_alpha: float = Field(0.25, gt=0, lt=1)
    """Weight of objects in the focal loss and cost; background has 1 - alpha."""

    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss and cost: the larger, the less counts what is right already."""

    auxiliary: bool = True
    """Supervise every decoder layer, not the last one alone."""


class OptimizerBase(FrozenModel):
    """Settings of every optimizer; learning rates belong to the total batch."""

    kind: str
    lr: float = Field(2e-4, gt=0)
    """Learning rate of all parameters that have no other."""

    lr_backbone: float = Field(2e-5, gt=0)
    """Learning rate of the backbone. What places sampling points in it has a tenth of this."""

    lr_sampling: float = Field(2e-5, gt=0)
    """Learning rate of what places sampling and reference points; a tenth of `lr` in the paper."""

    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of all parameters, norms and biases too."""


class AdamWConfig(OptimizerBase):
    """AdamW, with PyTorch's betas."""

    kind: Literal["adamw"] = "adamw"


class SGDConfig(OptimizerBase):
    """SGD with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: Probability = 0.9
    """Momentum factor."""


OptimizerConfig = Annotated[AdamWConfig | SGDConfig, Field(discriminator="kind")]


class StepScheduleConfig(FrozenModel):
    """The learning rate falls to a tenth after every `drop_epochs`."""

    kind: Literal["step"] = "step"
    drop_epochs: Positive = 40
    """Epochs from one drop to the next."""

    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly at first; 0 for none."""


class CosineScheduleConfig(FrozenModel):
    """The learning rate falls along half a cosine, to zero at the end of training."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises linearly at first; 0 for none."""


ScheduleConfig = Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")]


class TrainConfig(FrozenModel):
    """The training loop.

    A step sees `total_batch` images in forward passes of `micro_batch`, whatever the number of
    processes.
    """

    epochs: Positive = 50
    """Epochs after which training ends; see `data.repeats`."""

    max_steps: Positive | None = None
    """Steps after which training ends, if that is sooner. Null for no limit."""

    total_batch: Positive = 32
    """Images per step, over all processes; gradients accumulate to it."""

    micro_batch: Positive = 2
    """Images per forward pass of one process, in evaluation too; a divisor of `total_batch`."""

    optimizer: OptimizerConfig = AdamWConfig()
    """Optimizer and learning rates, which belong to `total_batch`."""

    schedule: ScheduleConfig = StepScheduleConfig()
    """Learning rate schedule."""

    clip_norm: float = Field(0.1, ge=0)
    """2-norm that the gradient of all parameters is clipped to; 0 does not clip."""

    ema_decay: Probability = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated; 0
    keeps none."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass, by autocast; `float16` has a loss scale. Boxes, losses,
    weights and evaluation stay in float32."""

    gradient_checkpointing: bool = False
    """Keep only the inputs of encoder and decoder layers, and compute the rest again for the
    gradient: the same numbers, less memory, more time."""

    channels_last: bool = False
    """Have convolutions compute in PyTorch's channels-last memory format."""

    deterministic: bool = False
    """On a GPU, allow only operators that give the same bits every time; one that has no such
    kernel is an error. CPUs need no switch."""

    freeze: tuple[Literal["backbone", "backbone_sampling", "sampling", "default"], ...] = ()
    """Roles whose parameters are not trained; their norms' statistics stay too. `sampling` places
    sampling and reference points, `backbone_sampling` sampling points in the backbone."""

    seed: int = Field(42, ge=0)
    """Seed of initial weights, order of samples, augmentation and dropout."""

    sample_order: Literal["global_batches", "buckets", "official"] = "global_batches"
    """`global_batches` is the same for any number of processes. `buckets` has the same samples in
    a step, but images of like shape share a micro-batch, for less padding. `official` is the order
    of the official code."""

    log_every: Positive = 10
    """Steps from one record in `metrics.jsonl` to the next."""

    checkpoint_every: Positive = 500
    """Steps from one checkpoint to the next; each epoch ends with one too."""

    eval_every_epochs: Positive = 1
    """Epochs from one evaluation to the next; training ends with one too."""

    validation_loss: bool = False
    """Compute the loss on the validation set too, in a pass of its own after each evaluation."""

    timeout_s: float = Field(1800.0, gt=0)
    """Seconds that a data-loader worker may take for a batch, and that one of several processes
    may keep the others waiting, before the run ends."""

    tensorboard: bool = False
    """Write what goes to `metrics.jsonl` as TensorBoard's events too."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.total_batch % self.micro_batch:
            raise ValueError(
                "total_batch must be a multiple of micro_batch, "
                f"got {self.total_batch} and {self.micro_batch}"
            )
        return self
