"""`deformable-detr predict`: finds objects in photos, draws them and writes them down."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.cli.options import Checkpoint, Device


def predict(
    photos: Annotated[
        list[Path], typer.Argument(metavar="PHOTO_OR_FOLDER", help="Photos, and folders of photos.")
    ],
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the pictures and detections.json.")
    ],
    threshold: Annotated[
        float, typer.Option(help="Show objects with at least this score, from 0 to 1.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Show these classes only.")
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Photos that run at once.")] = 4,
) -> None:
    """Find objects in photos: a picture of each photo, and a list in detections.json.

    Photos may be of any mode; they are turned as their EXIF orientation says, and boxes are in
    pixels of the photo so turned. A photo that cannot be read is named at the end, and the
    others are done all the same.
    """
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    result = deformable_detr.predict(
        photos,
        checkpoint=checkpoint,
        out=out,
        threshold=threshold,
        classes=names,
        device=device,
        batch_size=batch_size,
    )
    num_read = len(result.detections)
    typer.echo(f"{result.num_objects} objects in {num_read} photos, see {out}")
    if result.failures:
        others = ", the others are done" if num_read else ""
        raise ValueError(
            f"{len(result.failures)} of {result.num_photos} photos could not be read{others}\n"
            + "\n".join(result.failures)
        )
