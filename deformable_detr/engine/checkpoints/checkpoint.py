"""Checkpoints of training runs: saving, and loading with clear errors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deformable_detr.arguments import MOST_ENTRIES, require_bounded, require_integer
from deformable_detr.config.upgrade import upgrade
from deformable_detr.engine.checkpoints.sealed_file import outline, read_file, write_file
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import in_brief, shown

FORMAT = "deformable_detr"
FORMAT_VERSION = 1
RULES = 2
CHANGED_RULES = (  # from rules 1 to rules 2
    "samples have another order, augmentation and dropout draw other random numbers, a step with "
    "fewer objects than processes has a larger gradient (unless match_official), processes share "
    "the running statistics of batch norms, and frozen batch norms keep theirs"
)


@dataclass(frozen=True)
class Checkpoint:
    """State of a training run between two steps.

    Order of samples, augmentation, dropout and learning rate are functions of the config's seed and
    the step, for any number of processes, so none of their state is stored.

    Attributes:
        model: the detector's state_dict.
        ema: the state_dict of its moving average, or None for a run without one.
        optimizer: the optimizer's state_dict.
        epoch: number of finished epochs.
        step: number of optimizer steps taken; the schedule is a function of it.
        best_ap: highest AP of an evaluation so far, or None before the first.
        label_space: the classes of the detector.
        config: the resolved configuration, plain JSON; in a loaded one, keys have current names.
        versions: versions of the packages that wrote it; informational.
        origin: description of the initial weights; "" for those of the config.
        scaler: the state_dict of the gradient scaler in float16; empty for other precisions.
        evaluated: step of the newest evaluation, or None before the first.
        rules: number of the rules by which order, augmentation, dropout and losses follow from
            config and step; a run that is resumed continues by the current ones.
        reference_ap: for early stopping, the last AP that counted as a rise, or None before.
        evaluations_without_rise: for early stopping, the number of evaluations since then.
    """

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    epoch: int
    step: int
    best_ap: float | None
    label_space: LabelSpace
    config: dict[str, Any]
    versions: dict[str, str]
    origin: str = ""
    scaler: dict[str, Any] = field(default_factory=dict)
    evaluated: int | None = None
    rules: int = RULES
    reference_ap: float | None = None
    evaluations_without_rise: int = 0


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, previous: Path | None = None) -> None:
    """Write a checkpoint atomically: at any moment `path` holds the old one or the new one.

    Args:
        path: the file.
        checkpoint: its content.
        previous: path at which the old one is kept, or None to discard it.

    Raises:
        RuntimeError: it could not be written; the old one is untouched.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    content["label_space"] = checkpoint.label_space.to_json()
    write_file(
        path, {"format": FORMAT, "format_version": FORMAT_VERSION, **content}, previous=previous
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; no code in the file is ever run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a complete checkpoint of this package.
    """
    return checkpoint_of(read_file(path), path)


def checkpoint_of(content: Any, path: Path) -> Checkpoint:
    """Return the checkpoint that the content of a file is.

    Args:
        content: the content, with tensors on the CPU.
        path: the file.

    Raises:
        ValueError: it is not a complete checkpoint of this package.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {shown(path)} must be one that this package wrote, got {outline(content)}"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {shown(path)} must have format version {FORMAT_VERSION}, "
            f"got {in_brief(content.get('format_version'))}; install a matching deformable-detr"
        )
    # Files of earlier releases do not have these fields.
    former: dict[str, Any] = {"origin": "", "scaler": {}, "evaluated": None, "rules": 1}
    content = {**former, "reference_ap": None, "evaluations_without_rise": 0, **content}
    names = [field.name for field in fields(Checkpoint)]
    absent = [name for name in names if name not in content]
    if absent:
        raise ValueError(f"checkpoint {shown(path)} is missing {', '.join(absent)}")
    values = {name: content[name] for name in names}
    _check_types(path, values)
    try:
        values["config"] = upgrade(values["config"])
    except ValueError as error:
        raise ValueError(f"checkpoint {shown(path)} has no usable config: {error}") from error
    try:
        require_bounded(values["label_space"], "label_space", most=MOST_ENTRIES)
        values["label_space"] = LabelSpace.from_categories(values["label_space"])
    except ValueError as error:
        raise ValueError(f"checkpoint {shown(path)} has no usable label space: {error}") from error
    return Checkpoint(**values)


def _check_types(path: Path, values: Mapping[str, Any]) -> None:
    """Raise if a field has another type than in `Checkpoint`, or a weight is not a tensor."""
    expected: dict[str, Any] = {
        "model": dict,
        "ema": dict | None,
        "optimizer": dict,
        "epoch": int,
        "step": int,
        "best_ap": float | None,
        "label_space": list,
        "config": dict,
        "versions": dict,
        "origin": str,
        "scaler": dict,
        "evaluated": int | None,
        "rules": int,
        "reference_ap": float | None,
        "evaluations_without_rise": int,
    }
    for name, kind in expected.items():
        value = values[name]
        if not isinstance(value, kind):
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(
                f"{name} of checkpoint {shown(path)} must be {wanted}, got {type(value).__name__}"
            )
    for name in ("epoch", "step", "evaluated", "rules", "evaluations_without_rise"):
        if values[name] is not None:
            require_integer(f"{name} of checkpoint {shown(path)}", values[name], at_least=0)
    for category in values["label_space"]:
        if not isinstance(category, dict):
            raise ValueError(
                f"label_space of checkpoint {shown(path)} must hold categories, "
                f"got {in_brief(category)}"
            )
    for name in ("model", "ema"):
        for key, value in (values[name] or {}).items():
            if not isinstance(key, str):
                raise ValueError(
                    f"{name} of checkpoint {shown(path)} must have names of tensors as keys, "
                    f"got {in_brief(key)}"
                )
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name}.{shown(key)} of checkpoint {shown(path)} must be a tensor, "
                    f"got {type(value).__name__}"
                )


def weights_for_inference(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights for inference: the moving average if the run kept one."""
    return checkpoint.model if checkpoint.ema is None else checkpoint.ema


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into a model; all names and shapes must match.

    Args:
        model: model to copy the weights into.
        state_dict: the weights by name.
        what: description of the weights for the error, as in "checkpoint runs/a/last.pth".

    Raises:
        ValueError: a name is missing or unexpected, a shape differs, or integers are given for
            floating-point numbers; the model is unchanged.
    """
    own = model.state_dict()
    absent = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    reshaped = [
        f"{name} is {tuple(state_dict[name].shape)} and must be {tuple(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    converted = [
        f"{name} is {state_dict[name].dtype} and must be {value.dtype}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].is_floating_point() != value.is_floating_point()
    ]
    problems = []
    if absent:
        problems.append(f"is missing {len(absent)} parameters, first: {absent[0]}")
    if unexpected:
        problems.append(
            f"has {len(unexpected)} unexpected parameters, first: {shown(unexpected[0])}"
        )
    if reshaped:
        problems.append(f"has {len(reshaped)} parameters of another shape, first: {reshaped[0]}")
    if converted:
        problems.append(f"has {len(converted)} parameters of another type, first: {converted[0]}")
    if problems:
        raise ValueError(f"{what} {', '.join(problems)}; use the config it was trained with")
    model.load_state_dict(dict(state_dict))
