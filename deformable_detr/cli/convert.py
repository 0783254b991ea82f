"""`deformable-detr convert`: a detector's weights from one implementation's file to another's."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deformable_detr.cli.outputs import require_folder_place

# What needs PyTorch is imported when the command runs, so that help is there at once.
if TYPE_CHECKING:
    from deformable_detr.config import RunConfig
    from deformable_detr.conversion.weights import Weights
    from deformable_detr.labels import LabelSpace
    from deformable_detr.models.deformable_detr import DeformableDETR


class Target(str, Enum):
    """Whose file is written."""

    official = "official"
    transformers = "transformers"
    detrex = "detrex"
    mmdet = "mmdet"
    native = "native"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="Weights of this package, the official code, transformers, detrex or mmdetection.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write; for transformers, a folder."),
    ],
    to: Annotated[Target, typer.Option(help="Whose file to write.")] = Target.native,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="Config of the model, where IN does not tell, such as deformable_detr_r50.",
        ),
    ] = None,
) -> None:
    """Convert weights between implementations; what IN is follows from its names.

    A native file serves `predict`, `evaluate`, `convert` and `train --finetune-from`. It holds
    weights only, no state of an optimiser, so that `--resume` cannot go on with it.
    """
    if out.exists():
        raise FileExistsError(f"OUT must not exist yet, got {out}; choose another name")
    require_folder_place("OUT", out.parent)

    from deformable_detr.config.loading import load_config, validate_config
    from deformable_detr.conversion.files import read_weights
    from deformable_detr.conversion.writing import write_weights
    from deformable_detr.detector import model_with_weights, numbered_classes

    weights = read_weights(source, with_settings=config is None)
    what = f"checkpoint {source}"
    run = (
        validate_config(weights.config, source=what, ignore_unknown=True)
        if config is None
        else load_config(config, ["model.backbone.weights=none"])
    )
    model = model_with_weights(weights, run, what)
    space = weights.label_space or numbered_classes(weights)
    if to is Target.native:
        _write_native(out, model, space, run, source, weights.source)
    else:
        content = run.model_dump(mode="json")
        write_weights(out, model, to=to.value, label_space=space, config=content)
    for line in _report(weights, space, is_inferred=config is None):
        typer.echo(line)
    typer.echo(f"written: {out} ({to.value})")
    if to is Target.native:
        typer.echo(
            "It holds no optimiser state: go on with train --finetune-from, not with --resume."
        )


def _write_native(
    out: Path,
    model: "DeformableDETR",
    space: "LabelSpace",
    run: "RunConfig",
    path: Path,
    source: str,
) -> None:
    from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
    from deformable_detr.environment import current_versions

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


def _report(weights: "Weights", space: "LabelSpace", *, is_inferred: bool) -> Iterator[str]:
    """What was found in the file, and what was made of it."""
    from deformable_detr.config.flatten import flatten

    yield f"source: {weights.source}, {len(weights.state_dict)} tensors"
    if weights.ignored:
        first = weights.ignored[0]
        yield f"ignored, as they carry no weights: {len(weights.ignored)}, first: {first}"
    rows = weights.num_rows
    if rows is not None and rows != space.num_classes:
        yield f"class rows: {space.num_classes} of {rows} stand for a category, which are kept"
    known = "" if weights.label_space else ", which the file does not name"
    yield f"classes: {space.num_classes}{known}, {space.describe(limit=3)}"
    if is_inferred and weights.source != "native":
        settings = flatten(weights.config["model"])
        yield "inferred: " + ", ".join(f"{key}={value}" for key, value in settings)
        for assumption in weights.assumed:
            yield f"assumed, as the file does not tell (else give --config): {assumption}"
