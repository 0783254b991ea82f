"""Conversion of a detector's weights between the file formats of implementations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deformable_detr.arguments import checked
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
from deformable_detr.conversion.writing import FOLDER_FILES, write_weights
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
from deformable_detr.environment import current_versions
from deformable_detr.files import WriteError, as_path, delete, partial_path
from deformable_detr.files.output_folder import OutputFile, OutputFolder
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.models.deformable_detr import DeformableDETR

Target = Literal[
    "official", "transformers", "detrex", "mmdet", "dino", "detrex-dino", "mmdet-dino", "native"
]


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


@checked
def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: Target = "native",
    config: str | Path | None = None,
    overwrite: bool = False,
) -> ConversionResult:
    """Convert weights between implementations.

    The format of the source is recognized from its parameter names.

    Args:
        source: a file of this package, the official code, transformers (or its folder), detrex or
            mmdetection 3.x, of Deformable DETR or DINO.
        out: the file to write, or the folder for transformers.
        to: the format to write. The file holds no optimizer state: `train` can fine-tune from it,
            but not resume it. It keeps all settings and classes, in every format.
        config: config of the model, needed if the file does not determine it.
        overwrite: replace `out` even if this program did not write it, or if it has changed since.
            An input is never replaced.

    Raises:
        ValueError: the file does not hold a detector, or does not match the config, or `out` must
            not be replaced.
        WriteError: the file could not be written, as on a full disk.
    """
    source, out = as_path("source", source), as_path("out", out)
    inputs = [source] if config is None else [source, as_path("config", config)]
    place: OutputFile | OutputFolder
    if to == "transformers":
        place = OutputFolder(out, "OUT", overwrite=overwrite)
        place.check(FOLDER_FILES, inputs=inputs)
    else:
        place = OutputFile(out, "OUT", overwrite=overwrite)
        place.check(inputs=inputs)
    weights, run = _read(source, config)
    what = f"checkpoint {source}"
    model = model_with_weights(weights, run, what)
    space = weights.label_space or numbered_classes(weights)

    def write(path: Path) -> None:
        if to == "native":
            _write_native(path, model, space, run, source, weights.source)
        else:
            content = run.model_dump(mode="json")
            write_weights(path, model, to=to, label_space=space, config=content)

    if isinstance(place, OutputFile):
        out = place.write(write)
    else:
        _write_folder(place, out, write)
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


def _write_folder(place: OutputFolder, out: Path, write: Callable[[Path], None]) -> None:
    """Write the files beside the folder first, so that an error leaves no incomplete set in it."""
    beside = partial_path(out)
    try:
        delete(beside)
        write(beside)
        for name in FOLDER_FILES:
            if (beside / name).exists():
                place.write(name, (beside / name).replace)
    except WriteError as error:
        raise WriteError(str(error).replace(beside.name, out.name), error.reason) from error
    finally:
        delete(beside)


def _write_native(
    out: Path, model: DeformableDETR, space: LabelSpace, run: RunConfig, path: Path, source: str
) -> None:
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
