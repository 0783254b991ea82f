"""What a step and its examination have in common: seeds, counts, and the whole loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.data.samplers import derive_seed
from deformable_detr.losses.criterion import CriterionResult, mean_num_boxes
from deformable_detr.losses.mimicking import MIMIC_WEIGHT, mimicking_losses
from deformable_detr.models.detector import DeformableDETR
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
    batch: Batch,
    output: ModelOutput,
    result: CriterionResult,
    num_boxes: Tensor | float,
) -> dict[str, Tensor]:
    """The losses of a micro-batch, those of feature mimicking included if the model has it.

    Args:
        model: the detector itself, without a wrapper.
        batch: N images.
        output: of the detector for them.
        result: of the criterion for that.
        num_boxes: what sums are divided by, as for the criterion.

    Returns:
        The terms by name; "total" is what to differentiate.
    """
    if not isinstance(model, DeformableDETR) or model.mimicking is None:
        return result.losses
    hidden = output.last.hidden
    assert hidden is not None  # of a decoder layer
    features = model.mimicking(
        model.backbone, batch.images, hidden, batch.targets, result.last_match
    )
    terms = mimicking_losses(features, num_boxes)
    total = result.losses["total"] + MIMIC_WEIGHT * sum(terms.values())
    return result.losses | terms | {"total": total}
