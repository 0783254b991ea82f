"""Micro-batch before the first step: `auto` is measured and then kept, a number is checked."""

import logging
from typing import Any

from deformable_detr import distributed
from deformable_detr.builders import build_criterion, largest_size
from deformable_detr.builders.data import fixed_micro_batch
from deformable_detr.config import RunConfig
from deformable_detr.engine.micro_batch import largest_micro_batch, shortage
from deformable_detr.engine.state import TrainState

logger = logging.getLogger(__name__)


def with_micro_batch(config: RunConfig, count: int) -> RunConfig:
    """Return the config with another micro-batch."""
    train = config.train.model_copy(update={"micro_batch": count})
    return config.model_copy(update={"train": train})


def provisional(config: RunConfig) -> RunConfig:
    """Return the config with one image per micro-batch if that is to be measured."""
    return with_micro_batch(config, 1) if config.train.micro_batch == "auto" else config


def measured(config: RunConfig, state: TrainState, resumed: dict[str, Any] | None) -> RunConfig:
    """Return the config with the micro-batch as a number; every process must call.

    Args:
        config: config of the run.
        state: state of the run; only the number in its config is changed.
        resumed: config of the checkpoint that the run continues from, whose number is kept.
    """
    if config.train.micro_batch != "auto":
        return config
    counts = _candidates(config)
    count = None if resumed is None else resumed["train"]["micro_batch"]
    if count not in counts:
        count = largest_micro_batch(
            state,
            build_criterion(config),
            counts,
            lambda images: largest_size(with_micro_batch(config, images)),
        )
        if distributed.is_main():
            logger.info("micro-batch of %d images: the largest that fits into memory", count)
    state.config["train"]["micro_batch"] = count
    return with_micro_batch(config, count)


def memory_warning(config: RunConfig, state: TrainState) -> str | None:
    """Describe a micro-batch that will not fit into the memory of a CPU; None if it will.

    On a GPU, `build_loop` runs the largest one. Every process must call.
    """
    count = fixed_micro_batch(config)
    found = shortage(state, build_criterion(config), count, largest_size(config))
    if found is None:
        return None
    needed, available = (number / 1e9 for number in found)
    height, width = largest_size(config)
    return (
        f"train.micro_batch={count}: {count} images of {height} x {width} pixels need about "
        f"{needed:.1f} GB, and {available:.1f} GB are available: the system may end the run; lower "
        "it, or set train.micro_batch=auto or train.gradient_checkpointing=true"
    )


def _candidates(config: RunConfig) -> list[int]:
    """Return the divisors of the total batch that leave each process a micro-batch."""
    total, processes = config.train.total_batch, distributed.world_size()
    is_even = config.match_official or config.train.sample_order == "official"
    return [
        count
        for count in range(1, total + 1)
        if total % count == 0
        and total // count >= processes
        and not (is_even and total % (count * processes))
    ] or [1]
