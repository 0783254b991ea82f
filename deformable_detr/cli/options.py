"""Options and arguments shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[
    str,
    typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps; auto is CUDA, else MPS, else CPU."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Override settings of the config, such as train.micro_batch=4.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help="Checkpoint of `train`, or weights of another implementation."
    ),
]
