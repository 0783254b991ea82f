"""Measurement of the largest micro-batch that fits into memory, which changes no state of a run."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.engine.memory import resident_bytes, return_freed_memory, warm_up
from deformable_detr.engine.state import TrainState
from deformable_detr.environment import memory_bytes
from deformable_detr.losses.criterion import SetCriterion
from deformable_detr.structures import Size

USED_SHARE = 0.7  # of the available memory; the rest is for evaluation, images and other programs
# Of the models of the package, in float32: a ResNet-50 of four levels needs 6,400.
_MOST_BYTES_PER_PIXEL = 16_000
_MEASURED_SIDES = (256, 512)  # smaller ones are dominated by what does not grow
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def largest_micro_batch(
    state: TrainState,
    criterion: SetCriterion,
    candidates: Sequence[int],
    size_of: Callable[[int], Size],
) -> int:
    """Return the largest candidate that fits into memory, the same in every process.

    On a GPU the candidates are tried, the largest first. On a CPU the memory of one image and of
    two is measured, and that of more follows from them; the processes of a run share what is
    available. Where it cannot be measured, the smallest is taken. Every process must call.

    Args:
        state: unchanged afterwards, as in `warm_up`.
        criterion: loss function.
        candidates: numbers of images, ascending.
        size_of: (height, width) of the largest micro-batch, by its number of images.
    """

    def run(count: int) -> None:
        warm_up(state, criterion, num_images=count, size=size_of(count))

    found = _tried(run, candidates) if state.device.type == "cuda" else _estimated(run, candidates)
    return min(distributed.all_gather_objects(found))


def shortage(
    state: TrainState, criterion: SetCriterion, count: int, size: Size
) -> tuple[int, int] | None:
    """Estimate whether a micro-batch is too large for the memory of a CPU.

    The memory of a step grows in proportion to the pixels, so two small images show how much a
    pixel needs. Nothing is measured for a micro-batch that fits with any model of the package.
    Every process must call.

    Args:
        state: unchanged afterwards, as in `warm_up`; on another device nothing is estimated.
        criterion: loss function.
        count: number of images.
        size: (height, width) of the micro-batch.

    Returns:
        Bytes that each process needs, and those that it has, if the former are more; else None.
    """
    memory = memory_bytes()
    if memory is None or state.device.type != "cpu":
        return None
    limit = memory[1] // distributed.world_size()
    pixels = count * size[0] * size[1]
    if pixels * _MOST_BYTES_PER_PIXEL <= limit:
        return None

    def peak(side: int) -> int | None:
        return _peak_bytes(lambda: warm_up(state, criterion, num_images=1, size=(side, side)))

    small, large = (peak(side) for side in _MEASURED_SIDES)
    if small is None or large is None:
        return None
    per_pixel = max(large - small, 0) / (_MEASURED_SIDES[1] ** 2 - _MEASURED_SIDES[0] ** 2)
    needed = round(per_pixel * pixels)
    return (needed, limit) if needed > limit else None


def _tried(run: Callable[[int], None], candidates: Sequence[int]) -> int:
    for count in reversed(candidates):
        try:
            run(count)
        except RuntimeError as error:
            if not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
        else:
            return count
        gc.collect()
        torch.cuda.empty_cache()
    return candidates[0]


def _estimated(run: Callable[[int], None], candidates: Sequence[int]) -> int:
    memory = memory_bytes()
    if memory is None or len(candidates) == 1:
        return candidates[0]
    limit = USED_SHARE * memory[1] / distributed.world_size()
    first = _peak_bytes(lambda: run(1))
    if first is None or 2 * first > limit:
        return candidates[0]
    second = _peak_bytes(lambda: run(2))
    assert second is not None  # as the first
    per_image = max(second - first, 0)
    return max(
        (count for count in candidates if first + (count - 1) * per_image <= limit),
        default=candidates[0],
    )


def _peak_bytes(call: Callable[[], None]) -> int | None:
    """Return the peak of resident memory during a call, above that before; None if unknown."""
    return_freed_memory()  # reusing it would not be measured
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
        before = resident_bytes("VmRSS")
        call()
        return resident_bytes("VmHWM") - before
    except OSError:
        return None
