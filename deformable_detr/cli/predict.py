"""`deformable-detr predict`: detect objects in images, draw them and write them to a file."""

import re
from pathlib import Path
from typing import Annotated

import typer

import deformable_detr
from deformable_detr.arguments import MOST_BATCH
from deformable_detr.cli.options import Checkpoint, Device, Overwrite, fraction, whole
from deformable_detr.cli.terminal import echo
from deformable_detr.messages import counted, shown


def predict(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE_OR_DIR", help="Image files, and folders of images."),
    ],
    checkpoint: Checkpoint,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to write the pictures and detections.json to."),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="COCO annotation file that lists the images; detections.json gets its image ids "
            "and file names. Without it images are numbered in the order given.",
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            parser=fraction,
            metavar="X",
            help="Score threshold in [0, 1]; lower scores are dropped.",
        ),
    ] = 0.3,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Detect these classes only. A comma in a name is written as \\,",
        ),
    ] = None,
    max_detections: Annotated[
        int | None,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="Maximum number of detections per image.",
            show_default="all above the threshold",
        ),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    batch_size: Annotated[
        int, typer.Option(parser=whole(1, MOST_BATCH), metavar="N", help="Images per batch.")
    ] = 4,
) -> None:
    """Detect objects in images: pictures, and detections.json.

    Images may have any color mode. Their EXIF orientation is applied, and boxes are in pixels of
    the upright image, unless the checkpoint was trained on stored pixels. Images that cannot be
    read are listed at the end, with exit code 2; the others are processed. If none can be read, no
    detections.json is written.

    Examples:
        deformable-detr predict --checkpoint runs/photos/best.pth --out found photos
        deformable-detr predict --checkpoint a.pth --out found a.jpg --classes cat,dog
    """
    names = None if classes is None else _names(classes)
    result = deformable_detr.predict(
        photos,
        checkpoint=checkpoint,
        out=out,
        annotations=annotations,
        threshold=threshold,
        classes=names,
        max_detections=max_detections,
        overwrite=overwrite,
        device=device,
        batch_size=batch_size,
    )
    num_read, num_failed = len(result.detections), len(result.failures)
    failed = f"; {num_failed} of {result.num_photos} could not be read" if num_failed else ""
    found = f"{counted(result.num_objects, 'object')} in {counted(num_read, 'image')}"
    echo(f"{found}, see {shown(out)}{failed}")
    if result.failures:
        raise ValueError(
            f"{num_failed} of {counted(result.num_photos, 'image')} could not be read; "
            "the others were processed\n" + "\n".join(result.failures)
        )


def _names(text: str) -> list[str]:
    """Split at commas; one with a backslash before it belongs to a name."""
    return [name.replace("\\,", ",").strip() for name in re.split(r"(?<!\\),", text)]
