"""Loss, dropout seed and totals of a training step, shared with its replay."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import derive_seed
from deformable_detr.losses.criterion import CriterionResult, SetCriterion
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ModelOutput


def dropout_seed(seed: int, step: int, index: int) -> int:
    """Return the dropout seed of this rank's `index`-th micro-batch.

    It depends on the micro-batch's position in the global batch, not on the number of processes.
    It does depend on `micro_batch`: one mask is drawn for all images of a forward pass, of the
    shape of their padded features.
    """
    position = distributed.rank() + distributed.world_size() * index
    return derive_seed("dropout", seed, step, position)


@dataclass(frozen=True)
class StepTotals:
    """Numbers of images and objects of a step, over all micro-batches of all processes.

    What is divided by them, summed over micro-batches and averaged over processes, is a mean over
    the whole step, however it is cut.
    """

    images: int
    objects: int

    @classmethod
    def count(cls, batches: Sequence[Batch]) -> "StepTotals":
        """Add up the numbers of all processes, which must all call.

        Args:
            batches: this rank's micro-batches of the step.
        """
        counts = [len(target) for batch in batches for target in batch.targets]
        totals = distributed.all_reduce_sum(torch.tensor([len(counts), sum(counts)]))
        return cls(*totals.tolist())

    @property
    def images_per_process(self) -> float:
        """Mean number of images per process."""
        return self.images / distributed.world_size()

    @property
    def objects_per_process(self) -> float:
        """Mean number of objects per process; that of a single object if there is none."""
        return max(1, self.objects) / distributed.world_size()


def with_mimicking(
    model: nn.Module,
    criterion: SetCriterion,
    batch: Batch,
    output: ModelOutput,
    result: CriterionResult,
    num_boxes: Tensor | float,
) -> dict[str, Tensor]:
    """Return the losses of a micro-batch, including feature mimicking if it has a weight.

    Args:
        model: the detector itself, without a wrapper.
        criterion: loss function.
        batch: N images.
        output: outputs of the detector for the images.
        result: losses and matches of the criterion for the images.
        num_boxes: divisor of the sums, as for the criterion.

    Returns:
        The terms by name; "total" is the one to differentiate.
    """
    if not criterion.mimicking_weight:
        return result.losses
    detector = cast(DeformableDETR, model)  # the only model with feature mimicking
    features = detector.mimic(batch.images, output, batch.targets, result.last_match)
    return criterion.add_mimicking(result.losses, features, num_boxes)


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step was infinite or NaN on some rank."""


def require_finite(
    values: Mapping[str, Tensor], failure: ValueError | None, *, step: int, device: torch.device
) -> None:
    """Raise on every rank if the loss of one is not finite; every process must call.

    This waits for the device, at no extra cost: the matcher has just done so.

    Args:
        values: the terms of this rank's loss by name, including "total".
        failure: error of the matcher, if it failed and there are no values; else None.
        step: number of steps taken before.
        device: device of the values.

    Raises:
        NonFiniteError: on every rank; it names the non-finite terms of each.
    """
    total = torch.full((), math.nan) if failure else values["total"]
    if distributed.all_reduce_sum(total.to(device)).isfinite():
        return
    terms = [f"{name} {value}" for name, value in values.items() if not value.isfinite()]
    own = str(failure) if failure else ", ".join(terms)
    reports = distributed.all_gather_objects(own)
    found = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reports) if text)
    raise NonFiniteError(f"the loss of step {step} must be finite, got {found}") from failure
