"""What a run leaves on disk, written whole or not at all, and read back with clear errors."""

import os
import pickle
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from deformable_detr.labels import LabelSpace
from deformable_detr.version import __version__

FORMAT = "deformable_detr"
FORMAT_VERSION = 1
ZIP_MAGIC = b"PK\x03\x04"  # torch.save writes zip archives


@dataclass(frozen=True)
class Checkpoint:
    """A training run at one moment.

    Attributes:
        model: the detector's state_dict.
        ema: the state_dict of its moving average, or None for a run without.
        optimizer: the optimiser's state_dict.
        epoch: number of finished epochs.
        step: number of optimiser steps taken; the schedule is a function of it.
        best_ap: highest AP of an evaluation so far, or None before the first.
        label_space: the classes that the detector tells apart.
        config: the resolved configuration, plain JSON.
        versions: of the packages that wrote it, for people.
        origin: the weights that training started from, for people; "" for those of the config.
        scaler: the state_dict of the loss scale in float16; empty for other precisions.
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


def current_versions() -> dict[str, str]:
    """The versions to be stored in a checkpoint that is written now."""
    return {
        "deformable_detr": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that `path` holds, at any moment, the old one or the new one."""
    content = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    content["label_space"] = checkpoint.label_space.to_json()
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise RuntimeError(
            f"checkpoint {path} could not be written ({error}); what was there before is "
            "untouched; free space or choose another run folder"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; no code in the file is ever run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole checkpoint of this package.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {path} must be one that this package wrote, got {_outline(content)}"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path} must have format version {FORMAT_VERSION}, "
            f"got {content.get('format_version')!r}; install a matching deformable-detr"
        )
    content = {"origin": "", "scaler": {}, **content}  # which files of earlier releases do not hold
    names = [field.name for field in fields(Checkpoint)]
    absent = [name for name in names if name not in content]
    if absent:
        raise ValueError(f"checkpoint {path} lacks {', '.join(absent)}")
    values = {name: content[name] for name in names}
    _check_types(path, values)
    try:
        values["label_space"] = LabelSpace.from_categories(values["label_space"])
    except ValueError as error:
        raise ValueError(f"checkpoint {path} has no usable label space: {error}") from error
    return Checkpoint(**values)


def _read(path: Path) -> Any:
    """Unpack the file, every failure as one sentence."""
    if path.is_dir():
        raise ValueError(
            f"checkpoint must be a file, got the folder {path}; "
            f"a run folder has {path / 'best.pth'} and {path / 'last.pth'}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; check the path")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            begins_well = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        kind = "is truncated" if begins_well else "is not a file that PyTorch wrote"
        raise ValueError(f"checkpoint {path} {kind} ({path.stat().st_size} bytes)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} must hold tensors and plain values only, got other objects, "
            "which could run code when loaded; do not trust this file"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged ({reason})") from error


def _outline(content: Any) -> str:
    """What a foreign file holds, in a few words."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    names = ", ".join(repr(key) for key in list(content)[:3])
    return f"a dictionary of {len(content)} keys ({names}{', ...' if len(content) > 3 else ''})"


def _check_types(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse fields of another type than `Checkpoint` states, weights that are no tensors."""
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
    }
    for name, kind in expected.items():
        value = values[name]
        if not isinstance(value, kind):
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(
                f"{name} of checkpoint {path} must be {wanted}, got {type(value).__name__}"
            )
    for name in ("model", "ema"):
        for key, value in (values[name] or {}).items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name}.{key} of checkpoint {path} must be a tensor, "
                    f"got {type(value).__name__}"
                )


def weights_for_inference(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights to detect with: the moving average where the run kept one."""
    return checkpoint.model if checkpoint.ema is None else checkpoint.ema


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into a model that must match them in every name and shape.

    Args:
        model: gets the weights.
        state_dict: the weights by name.
        what: what they are, for the error, as in "checkpoint runs/a/last.pth".

    Raises:
        ValueError: a name is missing or too many, or a shape differs; the model is unchanged.
    """
    own = model.state_dict()
    absent = [name for name in own if name not in state_dict]
    foreign = [name for name in state_dict if name not in own]
    reshaped = [
        f"{name} is {tuple(state_dict[name].shape)} and must be {tuple(value.shape)}"
        for name, value in own.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    problems = []
    if absent:
        problems.append(f"lacks {len(absent)} parameters of the model, first: {absent[0]}")
    if foreign:
        problems.append(
            f"has {len(foreign)} parameters that the model has not, first: {foreign[0]}"
        )
    if reshaped:
        problems.append(f"has {len(reshaped)} parameters of another shape, first: {reshaped[0]}")
    if problems:
        raise ValueError(f"{what} {', '.join(problems)}; use the config it was trained with")
    model.load_state_dict(dict(state_dict))


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two configurations differ, one line each: `key: old -> new`."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += config_changes(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return changes
