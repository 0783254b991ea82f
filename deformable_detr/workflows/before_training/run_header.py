"""Summary of a run that is logged before its first step: at most 20 lines of at most 78 columns."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from deformable_detr import distributed
from deformable_detr.builders.data import fixed_micro_batch
from deformable_detr.config import RunConfig
from deformable_detr.engine.checkpoints.transfer import TransferReport
from deformable_detr.engine.run.header import (
    describe_batch,
    describe_dataset,
    describe_device,
    describe_learning_rates,
    describe_parameters,
)
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import total_steps
from deformable_detr.messages import counted, shown
from deformable_detr.workflows.recipe import nearest_recipe
from deformable_detr.workflows.training_parts import TrainingData

WIDTH = 78
MOST_LINES = 20
_INDENT = 9  # columns of the name of a group
_LINES_OF_TEXT = 2


def header_lines(
    config: RunConfig,
    data: TrainingData,
    state: TrainState,
    report: TransferReport | None,
    *,
    folder: Path,
    decisions: Sequence[str] = (),
    reasons: Sequence[str] = (),
    is_overridden: bool = False,
) -> list[str]:
    """Describe a run: its folder and device, data, model, length, rates and recipe.

    With reasons for what the preset chose, these take the place of the last three; with overrides
    too, length and rates are those of the run.

    Args:
        config: config of the run.
        data: its data sets.
        state: its state before the first step.
        report: what a file to fine-tune contributed, or None.
        folder: the run folder.
        decisions: what was decided about the data, one line each.
        reasons: what the preset chose, and why; lines of `WIDTH`, each with its own name.
        is_overridden: whether settings of the preset were overridden.
    """
    groups = {
        "run": [shown(folder), describe_device(state.device, config.model.attention.backend)],
        "data": [*decisions, *_of_data(data)],
        "model": [describe_parameters(state.model), *_of_weights(state, report)],
    }
    if not reasons or is_overridden:
        groups["length"] = [_of_length(config, data)]
        groups["rates"] = [describe_learning_rates(state.optimizer)]
    if not reasons:
        groups["recipe"] = [_of_recipe(config)]
    lines = [line for name, texts in groups.items() for line in _group(name, texts)]
    if reasons and is_overridden:
        lines.append(f"{'preset':{_INDENT}}chosen for the data, before overrides:")
    lines += reasons
    if len(lines) > MOST_LINES:
        rest = len(lines) - MOST_LINES + 1
        return [*lines[: MOST_LINES - 1], f"{'':{_INDENT}}... {counted(rest, 'more line')}"]
    return lines


def _group(name: str, texts: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a group; the name stands before the first."""
    for text in texts:
        wrapped = textwrap.wrap(
            text,
            WIDTH - _INDENT,
            max_lines=_LINES_OF_TEXT,
            placeholder=" ...",
            break_on_hyphens=False,
        )
        for line in wrapped:
            yield f"{name:{_INDENT}}{line}"
            name = ""


def _of_data(data: TrainingData) -> list[str]:
    sets = {"training": data.train, "validation": data.val}
    lines = [
        f"{name} {describe_dataset(len(one), int(one.num_objects.sum()), one.num_dropped)}"
        for name, one in sets.items()
    ]
    if any(one.num_turned for one in sets.values()):
        lines.append(f"EXIF: training images {data.train.exif}, validation images {data.val.exif}")
    number = counted(data.train.label_space.num_classes, "class")
    return [*lines, f"{number} {data.train.label_space.describe()}"]


def _of_weights(state: TrainState, report: TransferReport | None) -> list[str]:
    lines = [f"weights {state.origin}"] if state.origin else []
    return lines + [f"{name} {value}" for name, value in (report.describe() if report else ())]


def _of_length(config: RunConfig, data: TrainingData) -> str:
    per_epoch = data.sampler.steps_per_epoch
    end = total_steps(per_epoch, epochs=config.train.epochs, max_steps=config.train.max_steps)
    batch = describe_batch(
        total_batch=config.train.total_batch,
        micro_batch=fixed_micro_batch(config),
        world_size=distributed.world_size(),
    )
    return f"{end} steps, {per_epoch} per epoch; total batch {batch}"


def _of_recipe(config: RunConfig) -> str:
    recipe, deviations = nearest_recipe(config)
    official = "; match_official true" if config.match_official else ""
    if not deviations:
        return f"{recipe}{official}"
    others = counted(len(deviations), "other setting")
    return f"{recipe} with {others}, listed in report.html{official}"
