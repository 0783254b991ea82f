"""Likely cause of a non-finite loss or gradient, from the evidence left by the step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deformable_detr.data.collate import Batch
from deformable_detr.engine.failures.replay import Examination

# In a healthy run the norm of all weights does not grow by this factor.
GROWTH_OF_DIVERGENCE = 10.0
_MANY = 3  # names shown in an explanation


@dataclass(frozen=True)
class WeightNorm:
    """2-norm of all weights after `step` steps, without elements that are not finite."""

    step: int
    norm: float


def weight_norm(model: nn.Module) -> float:
    """Return the 2-norm of all parameters together, without elements that are not finite."""
    weights = [parameter.detach() for parameter in model.parameters()]
    norm = nn.utils.get_total_norm(weights).item()
    if math.isfinite(norm):
        return norm
    # In float64, which is slow, as the square of a large weight overflows float32.
    finite = [weight.cpu().double().nan_to_num(0.0, 0.0, 0.0) for weight in weights]
    return nn.utils.get_total_norm(finite).item()


def non_finite_weights(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that are not finite before a step.

    Running statistics are left out: the failed forward pass has changed them itself.
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
    """Return the first explanation that fits, checked from the most certain to the least.

    Args:
        batch: the micro-batch.
        examination: examination of the micro-batch, in the precision of the run.
        in_float32: the same in float32; None for a run in float32.
        bad_weights: names of weights that were not finite before the step.
        weight_norms: norms over this run, oldest first; the last one is the current norm.
        learning_rates: learning rate of each parameter group in this step, by role.
    """
    if images := _describe_bad_images(batch):
        return f"{images}: check the file, and the augmentation, which changes its pixels"
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
            f"weights were not finite before the step: {names}; check the file that they come "
            "from, and any code that has written to them"
        )
    where = examination.forward or examination.backward
    if in_float32 is not None and in_float32.is_finite and not examination.is_finite:
        return (
            f"the precision is too low: in float32 the same step is finite; the first non-finite "
            f"value is in {where}; choose train.precision=bfloat16 or float32"
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
        "not found: the same micro-batch gives finite values when it is run again; a "
        "non-deterministic kernel, or the hardware, may be the cause"
    )


def _describe_bad_images(batch: Batch) -> str:
    """Return a description of the images that have non-finite values, or ""."""
    found = []
    for image, target in zip(batch.images.images, batch.targets, strict=True):
        count = int((~image.isfinite()).sum())
        if count:
            found.append(
                f"image {target.image_id} has {count} non-finite values of {image.numel()} after "
                "its transform"
            )
    return ", ".join(found)
