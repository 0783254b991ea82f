"""Conversion of a detector's weights between the file formats of implementations."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deformable_detr.builders.weights import (
    model_with_weights,
    numbered_classes,
    with_labels_of,
)
from deformable_detr.config import RunConfig
from deformable_detr.config.flatten import flatten
from deformable_detr.config.loading import load_config, validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.weights import Weights
from deformable_detr.conversion.writing import write_weights
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
from deformable_detr.environment import current_versions
from deformable_detr.files import as_path
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.workflows.places import require_folder_place

Target = Literal["official", "transformers", "detrex", "mmdet", "native"]


@dataclass(frozen=True)
class ConversionResult:
    """Result of a conversion.

    Attributes:
        out: the file written; a folder for transformers.
        weights: content of the source file.
        label_space: the classes.
        is_inferred: True if the settings come from the file, False if they come from a config.
    """

    out: Path
    weights: Weights
    label_space: LabelSpace
    is_inferred: bool

    def describe(self) -> Iterator[str]:
        """Yield a summary of the source file, line by line."""
        weights, space = self.weights, self.label_space
        yield f"source: {weights.source}, {len(weights.state_dict)} tensors"
        if weights.ignored:
            first = weights.ignored[0]
            yield f"ignored, not weights: {len(weights.ignored)} entries, first: {shown(first)}"
        rows = weights.num_rows
        if rows is not None and rows > space.num_classes:
            yield f"class rows: kept the {space.num_classes} of {rows} that belong to a category"
        elif rows is not None and rows < space.num_classes:
            yield f"class rows: {rows} became {space.num_classes}, one for each category id"
        known = "" if weights.label_space else ", not named in the file"
        yield f"classes: {space.num_classes}{known}, {space.describe(limit=3)}"
        if self.is_inferred and weights.source != "native":
            settings = flatten(weights.config["model"])
            how = "stored in the file" if weights.has_all_settings else "inferred"
            yield f"{how}: " + ", ".join(f"{key}={value}" for key, value in settings)
            for assumption in weights.assumed:
                yield f"assumed, not stored in the file (override with --config): {assumption}"


def convert(
    source: str | Path, out: str | Path, *, to: Target = "native", config: str | Path | None = None
) -> ConversionResult:
    """Convert weights between implementations.

    The format of the source is recognized from its parameter names.

    Args:
        source: a file of this package, the official code, transformers (or its folder), detrex or
            mmdetection 3.x.
        out: the file to write, or the folder for transformers; must not exist.
        to: the format to write. The file holds no optimizer state: `train` can fine-tune from it,
            but not resume it. It keeps all settings and classes, in every format.
        config: config of the model, needed if the file does not determine it.

    Raises:
        FileExistsError: `out` exists.
        ValueError: the file does not hold a detector, or does not match the config.
    """
    source, out = as_path("source", source), as_path("out", out)
    if out.exists():
        raise FileExistsError(f"OUT must not exist yet, got {shown(out)}; choose another name")
    require_folder_place("OUT", out.parent)
    weights, run = _read(source, config)
    what = f"checkpoint {source}"
    model = model_with_weights(weights, run, what)
    space = weights.label_space or numbered_classes(weights)
    if to == "native":
        _write_native(out, model, space, run, source, weights.source)
    else:
        content = run.model_dump(mode="json")
        write_weights(out, model, to=to, label_space=space, config=content)
    return ConversionResult(out, weights, space, is_inferred=config is None)


def _read(source: Path, config: str | Path | None) -> tuple[Weights, RunConfig]:
    """Read the weights, with the settings of the file or of a config."""
    if config is None:
        weights = read_weights(source)
        what = f"checkpoint {source}"
        return weights, validate_config(weights.config, source=what, ignore_unknown=True)
    run = load_config(config)
    weights = read_weights(source, with_settings=False, raw_labels=run.match_official)
    return with_labels_of(weights, run), run


def _write_native(
    out: Path, model: DeformableDETR, space: LabelSpace, run: RunConfig, path: Path, source: str
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(
        model=model.state_dict(),
        ema=None,
        optimizer={},
        epoch=0,
        step=0,
        best_ap=None,
        label_space=space,
        config=run.model_dump(mode="json"),
        versions={**current_versions(), "converted_from": source},
        origin=f"converted from {path} ({source})",
    )
    save_checkpoint(out, checkpoint)
