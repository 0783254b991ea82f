"""`deformable-detr predict`: detect objects in images, draw them and write them to a file."""

from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.cli.options import Checkpoint, Device


def predict(
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE_OR_FOLDER", help="Image files, and folders of images."),
    ],
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to write the pictures and detections.json to."),
    ],
    threshold: Annotated[
        float, typer.Option(help="Score threshold in [0, 1]; lower scores are dropped.")
    ] = 0.3,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Detect these classes only.")
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 4,
) -> None:
    """Detect objects in images: write one picture per image, and detections.json.

    Images may have any color mode. Their EXIF orientation is applied, and boxes are in pixels of
    the upright image, unless the checkpoint was trained on stored pixels. Images that cannot be
    read are listed at the end; the others are processed.
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
    typer.echo(f"{result.num_objects} objects in {num_read} images, see {out}")
    if result.failures:
        others = "; the others were processed" if num_read else ""
        raise ValueError(
            f"{len(result.failures)} of {result.num_photos} images could not be read{others}\n"
            + "\n".join(result.failures)
        )
