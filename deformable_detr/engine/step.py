"""Loss, dropout seed and box count of a training step, shared with its replay."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import derive_seed
from deformable_detr.losses.criterion import CriterionResult, SetCriterion, mean_num_boxes
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ModelOutput


def dropout_seed(seed: int, step: int, index: int) -> int:
    """Of the `index`-th micro-batch of this process, whichever process that is."""
    return derive_seed(seed, step, distributed.rank() + distributed.world_size() * index)


def count_boxes(batches: Sequence[Batch]) -> float:
    """Objects of a step, of which these are this process's micro-batches; every process calls."""
    return mean_num_boxes(sum(len(target) for batch in batches for target in batch.targets))


def mean_micro_batches(batches: Sequence[Batch]) -> float:
    """Micro-batches of a process in a step, on average, as some may have one more than others.

    Args:
        batches: those of this process; every process calls.
    """
    total = distributed.all_reduce_sum(torch.tensor(float(len(batches))))
    return total.item() / distributed.world_size()


def with_mimicking(
    model: nn.Module,
    criterion: SetCriterion,
    batch: Batch,
    output: ModelOutput,
    result: CriterionResult,
    num_boxes: Tensor | float,
) -> dict[str, Tensor]:
    """The losses of a micro-batch, those of feature mimicking included where they have a weight.

    Args:
        model: the detector itself, without a wrapper.
        criterion: of the run.
        batch: N images.
        output: of the detector for them.
        result: of the criterion for them.
        num_boxes: what sums are divided by, as for the criterion.

    Returns:
        The terms by name; "total" is what to differentiate.
    """
    if not criterion.mimicking_weight:
        return result.losses
    detector = cast(DeformableDETR, model)  # no other has it
    features = detector.mimic(batch.images, output, batch.targets, result.last_match)
    return criterion.add_mimicking(result.losses, features, num_boxes)


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
