"""Why a step's loss or gradient was not finite, in words, from what can be seen afterwards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deformable_detr.data.collate import Batch
from deformable_detr.engine.failures.replay import Examination

# No sound run multiplies the norm of all its weights by as much between two of its looks at it.
GROWTH_OF_DIVERGENCE = 10.0
_MANY = 3  # names that an explanation shows


@dataclass(frozen=True)
class WeightNorm:
    """The 2-norm of all weights after so many steps; of the finite ones, where not all are."""

    step: int
    norm: float


def weight_norm(model: nn.Module) -> float:
    """The 2-norm of all parameters together, without elements that are not finite."""
    weights = [parameter.detach() for parameter in model.parameters()]
    norm = nn.utils.get_total_norm(weights).item()
    if math.isfinite(norm):
        return norm
    # Slowly, as a large weight has a square that no float32 holds.
    finite = [weight.cpu().double().nan_to_num(0.0, 0.0, 0.0) for weight in weights]
    return nn.utils.get_total_norm(finite).item()


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of parameters and buffers that are not finite before a step.

    Running statistics are left out: the forward pass that has failed has spoilt them itself.
    """
    running = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name in ("running_mean", "running_var")
    }
    return [
        name
        for name, value in model.state_dict().items()
        if name not in running and value.is_floating_point() and not value.isfinite().all()
    ]


def likely_cause(
    batch: Batch,
    *,
    examination: Examination,
    in_float32: Examination | None,
    bad_weights: Sequence[str],
    weight_norms: Sequence[WeightNorm],
    learning_rates: Mapping[str, float],
) -> str:
    """The first explanation that fits, the surest first.

    Args:
        batch: the micro-batch.
        examination: of it, as the step ran it.
        in_float32: the same without low precision; None for a run without that.
        bad_weights: names of weights that were not finite before the step.
        weight_norms: of this run, oldest first, the last one of now.
        learning_rates: of each group of parameters in this step.
    """
    if images := _describe_bad_images(batch):
        return f"{images}: look at the file, and at the augmentation, which works on its pixels"
    first, now = weight_norms[0], weight_norms[-1]
    if now.norm > GROWTH_OF_DIVERGENCE * first.norm:
        largest = max(learning_rates.values())
        return (
            f"the learning rate is too high: with up to {largest:g} the 2-norm of all weights grew "
            f"from {first.norm:.4g} after step {first.step} to {now.norm:.4g} after step "
            f"{now.step}; lower train.optimizer.lr, or warm up"
        )
    if bad_weights:
        rest = len(bad_weights) - _MANY
        names = ", ".join(bad_weights[:_MANY]) + (f" and {rest} more" if rest > 0 else "")
        return (
            f"weights were not finite before the step: {names}; the file that they come from, or "
            "what has written to them, is at fault"
        )
    where = examination.forward or examination.backward
    if in_float32 is not None and in_float32.is_finite and not examination.is_finite:
        return (
            f"the precision is too low: in float32 the same step is finite; the first number that "
            f"is not is in {where}; choose train.precision=bfloat16 or float32"
        )
    if examination.forward:
        return (
            f"the forward pass fails at {where}, whose inputs reach "
            f"{examination.largest_input:.3g}; the layers before it have grown too large "
            "(learning rate), or it divides by zero"
        )
    if examination.backward:
        return f"the loss is {examination.loss:.4g}, but the backward pass fails at {where}"
    if not examination.is_finite:
        return "each gradient is finite, but together they are too large for float32"
    return (
        "not found: the same micro-batch gives finite numbers when it is run again; a kernel "
        "that is not deterministic, or the hardware, may be at fault"
    )


def _describe_bad_images(batch: Batch) -> str:
    """Which images hold numbers that are not finite, or ""."""
    found = []
    for image, target in zip(batch.images.images, batch.targets, strict=True):
        count = int((~image.isfinite()).sum())
        if count:
            found.append(
                f"image {target.image_id} holds {count} of {image.numel()} numbers that are not "
                "finite after its transform"
            )
    return ", ".join(found)
