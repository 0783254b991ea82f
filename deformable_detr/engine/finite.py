"""NonFiniteError: what a step is not taken for, agreed on by all processes."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from deformable_detr import distributed


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step was infinite or not a number in some process."""


def require_finite(
    values: Mapping[str, Tensor], failure: ValueError | None, *, step: int, device: torch.device
) -> None:
    """Stop every process if the loss of one is not finite; every process must call.

    This waits for the device, at no cost: the matcher has done so a moment before.

    Args:
        values: the terms of this process's loss by name, "total" among them.
        failure: of the matcher, where there are no values; or None.
        step: the steps taken before.
        device: where the values are.

    Raises:
        NonFiniteError: in every process; it names the terms that are not finite in each.
    """
    total = torch.full((), math.nan) if failure else values["total"]
    if distributed.all_reduce_sum(total.to(device)).isfinite():
        return
    terms = [f"{name} {value}" for name, value in values.items() if not value.isfinite()]
    own = str(failure) if failure else ", ".join(terms)
    reports = distributed.all_gather_objects(own)
    found = "; ".join(f"process {rank}: {text}" for rank, text in enumerate(reports) if text)
    raise NonFiniteError(f"the loss of step {step} must be finite, got {found}") from failure
