"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that replace the config's, such as train.micro_batch=4.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path, typer.Option(metavar="FILE", help="Checkpoint of `train`, or weights from elsewhere.")
]
