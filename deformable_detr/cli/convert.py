"""`deformable-detr convert`: a detector's weights from one implementation's file to another's."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


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
    # What needs PyTorch is imported when the command runs, so that help is there at once.
    from deformable_detr.workflows import conversion

    result = conversion.convert(source, out, to=to.value, config=config)
    for line in result.describe():
        typer.echo(line)
    typer.echo(f"written: {out} ({to.value})")
    if to is Target.native:
        typer.echo(
            "It holds no optimiser state: go on with train --finetune-from, not with --resume."
        )
