"""Settings of the loss and the training loop."""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from deformable_detr.arguments import MOST_BATCH
from deformable_detr.config.base import FrozenModel, Positive, Probability
from deformable_detr.messages import in_brief

_LONGEST_TIMEOUT_S = 2_000_000  # the milliseconds of a wait are held in 32 bits


class FocalLossConfig(FrozenModel):
    """Focal loss, with `focal_alpha` and `focal_gamma`."""

    kind: Literal["focal"] = "focal"


class QualityLossConfig(FrozenModel):
    """Binary cross-entropy whose targets grow with the IoU of the box.

    A query with score p that is matched at IoU u has the target max(floor, p^score_power *
    u^iou_power). The defaults are those of Align-DETR; `score_power: 0`, `iou_power: 1.5`, `gamma:
    1.5`, `floor: 0` are those of DEIM. Both have `class_weight: 1`.
    """

    kind: Literal["quality"] = "quality"
    score_power: float = Field(0.25, ge=0, le=1)
    """Exponent of the score in the target."""

    iou_power: float = Field(0.75, ge=0, le=10)
    """Exponent of the IoU in the target."""

    gamma: float = Field(2.0, ge=0, le=10)
    """Exponent of the score in the weight of background; larger values down-weight easy examples
    more."""

    floor: float = Field(0.01, ge=0, lt=1)
    """Least target of a matched query."""


ClassLossConfig = Annotated[FocalLossConfig | QualityLossConfig, Field(discriminator="kind")]


class LossConfig(FrozenModel):
    """Matching costs, loss weights, and parameters of the focal loss and cost."""

    class_loss: ClassLossConfig = FocalLossConfig()
    """Class loss of all layers."""

    class_cost: float = Field(2.0, ge=0)
    """Weight of the focal class cost in matching."""

    l1_cost: float = Field(5.0, ge=0)
    """Weight of the L1 distance of boxes in matching."""

    giou_cost: float = Field(2.0, ge=0)
    """Weight of the generalized IoU of boxes in matching."""

    class_weight: float = Field(2.0, ge=0)
    """Weight of the class loss."""

    class_weights: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = ()
    """Factors of the class losses of each class, in the order of the category ids; empty for 1.
    Larger ones for rare classes raise their scores. Not for proposals ranked by objectness."""

    l1_weight: float = Field(5.0, ge=0)
    """Weight of the L1 loss of boxes."""

    giou_weight: float = Field(2.0, ge=0)
    """Weight of the generalized IoU loss of boxes."""

    focal_alpha: float = Field(0.25, gt=0, lt=1)
    """Weight of the foreground in the focal loss and cost; the background has 1 - alpha."""

    focal_gamma: float = Field(2.0, ge=0)
    """Exponent of the focal loss and cost; larger values down-weight easy examples more."""

    auxiliary: bool = True
    """Supervise all decoder layers, not only the last one."""


class OptimizerBase(FrozenModel):
    """Settings shared by all optimizers; learning rates apply to the total batch."""

    kind: str
    lr: float = Field(2e-4, gt=0)
    """Learning rate of all parameters except those of `lr_backbone` and `lr_sampling`."""

    lr_backbone: float = Field(2e-5, gt=0)
    """Learning rate of the backbone; its offset generators have a tenth of it."""

    lr_sampling: float = Field(2e-5, gt=0)
    """Learning rate of the layers that predict sampling offsets and reference points; a tenth of
    `lr` in the paper."""

    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of all parameters, including norms and biases."""


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
    """Learning rate that drops to a tenth every `drop_epochs` epochs."""

    kind: Literal["step"] = "step"
    drop_epochs: Positive = 40
    """Number of epochs between drops."""

    warmup_steps: int = Field(0, ge=0)
    """Number of warm-up steps, in which the learning rate rises linearly; 0 for none."""


class CosineScheduleConfig(FrozenModel):
    """Learning rate that falls along half a cosine, to zero at the end of training."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    """Number of warm-up steps, in which the learning rate rises linearly; 0 for none."""


ScheduleConfig = Annotated[StepScheduleConfig | CosineScheduleConfig, Field(discriminator="kind")]


class EarlyStoppingConfig(FrozenModel):
    """End of training when AP on the validation set no longer rises."""

    patience: Positive = 10
    """Evaluations in a row without a rise of AP, after which training ends."""

    min_delta: float = Field(0.0, ge=0, lt=1)
    """What AP must rise by, above the last AP that counted as a rise."""


def _number_or_auto(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Refuse a value in one line, not in one for the number and one for the word."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError(
            f"must be an integer in 1..{MOST_BATCH} or auto, got {in_brief(value)}"
        ) from None


MicroBatch = Annotated[
    Annotated[int, Field(gt=0, le=MOST_BATCH)] | Literal["auto"], WrapValidator(_number_or_auto)
]


class TrainConfig(FrozenModel):
    """Training loop.

    A step sees `total_batch` images in forward passes of `micro_batch`, for any number of
    processes.
    """

    epochs: Positive = 50
    """Number of epochs; see also `data.repeats`."""

    max_steps: Positive | None = None
    """Maximum number of steps; training ends here if this is before the last epoch. Null for no
    limit."""

    total_batch: int = Field(32, gt=0, le=65536)
    """Images per step, over all processes; gradients are accumulated to reach it."""

    micro_batch: MicroBatch = 2
    """Images per forward pass of one process in training; must divide `total_batch`. "auto" is the
    largest number that fits into memory: it is measured before the first step, and `config.yaml`
    and the checkpoint have it, so that a resumed run keeps it."""

    optimizer: OptimizerConfig = AdamWConfig()
    """Optimizer and learning rates, which apply to `total_batch`."""

    schedule: ScheduleConfig = StepScheduleConfig()
    """Learning rate schedule."""

    clip_norm: float = Field(0.1, ge=0)
    """Maximum 2-norm of the gradient of all parameters; 0 disables clipping."""

    ema_decay: Probability = 0.0
    """Decay of an exponential moving average (EMA) of the weights, which is then evaluated; 0 for
    no average."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass, by autocast; `float16` uses loss scaling. Boxes, losses,
    weights and evaluation stay in float32."""

    gradient_checkpointing: bool = False
    """Store only the inputs of encoder and decoder layers, and recompute the rest in the backward
    pass: same results, less memory, more time."""

    channels_last: bool = False
    """Run convolutions in PyTorch's channels-last memory format."""

    deterministic: bool = False
    """On a GPU, allow only operators with bitwise reproducible results; others raise an error. On
    a CPU, results are reproducible without it."""

    freeze: tuple[Literal["backbone", "backbone_sampling", "sampling", "default"], ...] = ()
    """Roles of parameters that are not trained; modules with no other parameters stay in eval
    mode, so that their norm statistics are fixed and they have no dropout. `sampling`: layers that
    predict sampling offsets and reference points; `backbone_sampling`: offset generators in the
    backbone."""

    seed: int = Field(42, ge=0)
    """Seed of initial weights, sample order, augmentation and dropout."""

    sample_order: Literal["global_batches", "buckets", "official"] = "global_batches"
    """`global_batches` is the same for any number of processes. `buckets` has the same samples per
    step, but groups images of similar aspect ratio into micro-batches, for less padding.
    `official` is the order of the official code."""

    log_every: Positive = 10
    """Number of steps between records in `metrics.jsonl`."""

    checkpoint_every: Positive = 500
    """Number of steps between checkpoints; there is also one at the end of each epoch."""

    eval_every_epochs: Positive = 1
    """Number of epochs between evaluations; there is also one at the end of training."""

    early_stopping: EarlyStoppingConfig | None = None
    """End training when AP no longer rises; null trains to the end. The schedule stays that of the
    whole length, so that the last learning rates of a cosine are not reached."""

    eval_batch: int = Field(2, gt=0, le=MOST_BATCH)
    """Maximum number of images per forward pass of one process in evaluation. They have the same
    processed size, so that nothing is padded; results do not depend on it."""

    validation_loss: bool = False
    """Also compute the loss on the validation set, in a separate pass after each evaluation."""

    timeout_s: float = Field(1800.0, gt=0, le=_LONGEST_TIMEOUT_S)
    """Seconds to wait for a batch of a data-loader worker, or for another process, before the run
    ends with an error."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Also send the records of `metrics.jsonl` to TensorBoard, W&B or MLflow, each in a process of
    its own. One that fails or hangs never stops the run."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.micro_batch != "auto" and self.total_batch % self.micro_batch:
            raise ValueError(
                "total_batch must be a multiple of micro_batch, "
                f"got {self.total_batch} and {self.micro_batch}"
            )
        return self
