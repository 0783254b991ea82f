"""`deformable-detr convert`: convert weights between implementations."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from deformable_detr.cli.options import Overwrite, complete_config
from deformable_detr.cli.terminal import echo
from deformable_detr.messages import shown


class Target(str, Enum):
    """Format of the file to write."""

    official = "official"
    transformers = "transformers"
    detrex = "detrex"
    mmdet = "mmdet"
    dino = "dino"
    detrex_dino = "detrex-dino"
    mmdet_dino = "mmdet-dino"
    native = "native"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="Weights of this package, the official code, transformers, detrex or mmdetection, "
            "of Deformable DETR or DINO; the format is recognized.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="File to write; for transformers, a folder."),
    ],
    to: Annotated[
        Target, typer.Option(help="Format of OUT; those of DINO models end with dino.")
    ] = Target.native,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            autocompletion=complete_config,
            help="Config of the model, such as deformable_detr_r50, if IN does not contain it.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert weights between implementations.

    The format of IN is recognized from its parameter names. `predict`, `evaluate`, `convert` and
    `train --finetune-from` read a native file. It holds weights only, no optimizer state, so
    `train --resume` cannot continue from it. Files of other formats keep settings and classes
    too, where other programs ignore them.

    Examples:
        deformable-detr convert r50_deformable_detr-checkpoint.pth r50.pth
        deformable-detr convert r50.pth for-transformers --to transformers
    """
    # PyTorch code is imported when the command runs, so that --help is fast.
    from deformable_detr.workflows import conversion

    result = conversion.convert(source, out, to=to.value, config=config, overwrite=overwrite)
    for line in result.describe():
        echo(line)
    echo(f"written: {shown(result.out)} ({to.value})")
    if to is Target.native:
        echo("It holds no optimizer state: use it with train --finetune-from, not with --resume.")
