"""`deformable-detr explain`: draw what a detector attends to."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.arguments import MOST_NOISE, require_integer
from deformable_detr.cli.options import Device, Overwrite, whole
from deformable_detr.cli.terminal import echo
from deformable_detr.messages import in_brief, shown


def explain(
    photo: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    checkpoint: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Checkpoint of `train`, or weights of another implementation."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the pictures to.")],
    queries: Annotated[
        int,
        typer.Option(
            parser=whole(0),
            metavar="N",
            help="Number of detections, best first, whose sampling points are drawn.",
        ),
    ] = 3,
    erf: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER", help="Draw the effective receptive field of one cell of this layer."
        ),
    ] = None,
    noise: Annotated[
        int,
        typer.Option(
            parser=whole(0, MOST_NOISE),
            metavar="N",
            help="Average the receptive field over this many noise images; 0 uses the image.",
        ),
    ] = 0,
    deform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Draw the sampling points of this deformable convolution. Repeat the option for "
            "consecutive layers to draw the points of the chain.",
        ),
    ] = None,
    fusion: Annotated[
        bool, typer.Option("--fusion", help="Draw the level weights of an ASFF neck.")
    ] = False,
    cell: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN",
            help="Cell of the feature map for --erf and --deform; default: the center.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Draw what a detector attends to.

    These are sampling points, receptive fields and level weights. Layers have the names of the
    model's modules, such as neck.projections.0; the error for an unknown name lists the nearest
    ones. Files are named after their content, such as query_1.png.

    Examples:
        deformable-detr explain photo.jpg --checkpoint a.pth --out found
        deformable-detr explain photo.jpg --checkpoint a.pth --out found --queries 9
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
        overwrite=overwrite,
        device=device,
    )
    for file in result.files.values():
        echo(shown(file))


def _parse_cell(text: str) -> tuple[int, int]:
    try:
        row, column = (int(part) for part in text.split(","))
        require_integer("row", row, at_least=0)
        require_integer("column", column, at_least=0)
    except ValueError:
        raise ValueError(f"--cell must be ROW,COLUMN, two integers, got {in_brief(text)}") from None
    return row, column
