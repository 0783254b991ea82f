"""`deformable-detr explain`: draws where a detector looks."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.cli.options import Device


def explain(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo.")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="FILE", help="Checkpoint written by `train`.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    queries: Annotated[
        int,
        typer.Option(min=0, help="Draw the sampling points of this many of the best detections."),
    ] = 3,
    erf: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER", help="Draw the effective receptive field of a cell of this layer."
        ),
    ] = None,
    noise: Annotated[
        int,
        typer.Option(
            min=0, help="Average the receptive field over this many images of noise, not the photo."
        ),
    ] = 0,
    deform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Draw the sampling points of this deformable convolution; of several layers, "
            "which follow each other, those of the chain.",
        ),
    ] = None,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Draw the weights of the levels of an ASFF neck.")
    ] = False,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN", help="For --erf and --deform; the one in the middle if not given."
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw where a detector looks: sampling points, receptive fields, weights of levels.

    Layers are named as in the model, such as neck.projections.0; a wrong name is answered with
    the nearest ones. Pictures have the names of what they show.
    """
    result = deformable_detr.explain(
        photo,
        checkpoint=checkpoint,
        out=out,
        queries=queries,
        erf=erf,
        noise=noise,
        deform=deform or (),
        fusion=fusion,
        cell=None if cell is None else _parse_cell(cell),
        device=device,
    )
    for file in result.files.values():
        typer.echo(str(file))


def _parse_cell(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--cell must be ROW,COLUMN, two whole numbers, got {text!r}")
    return int(parts[0]), int(parts[1])
