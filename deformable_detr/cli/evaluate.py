"""`deformable-detr evaluate`: score a detector, or a results file, as COCO does."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import deformable_detr
from deformable_detr.arguments import MOST_BATCH, MOST_WORKERS
from deformable_detr.cli.options import Device, Overwrite, whole
from deformable_detr.cli.outputs import print_metrics, printed_if_unwritten


def evaluate(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Checkpoint of `train`, or weights of another implementation."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the annotated images; without it and --annotations, the validation set "
            "of the run that wrote the checkpoint.",
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="COCO annotation file to compare with.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score this COCO results file instead of running a checkpoint.",
        ),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST_BATCH),
            metavar="N",
            help="Images of one size per batch and process.",
        ),
    ] = 2,
    num_workers: Annotated[
        int,
        typer.Option(
            parser=whole(0, MOST_WORKERS),
            metavar="N",
            help="Processes that load images, per process of the run.",
        ),
    ] = 2,
    max_detections: Annotated[
        int,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="Maximum number of detections per image. COCO's is 100; with another one, the "
            "names of the metrics carry it, such as AP@300 and AR300.",
        ),
    ] = 100,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the detections to this COCO results file."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write pictures of annotated and detected objects, side by side, to this folder.",
        ),
    ] = None,
    num_pictures: Annotated[
        int,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="Number of pictures, spread evenly over the images.",
        ),
    ] = 8,
    overwrite: Overwrite = False,
    empty_boxes: Annotated[
        Literal["missed", "ignored"],
        typer.Option(
            help="Count annotated boxes without area inside their image as missed, or ignore them."
        ),
    ] = "missed",
    exif: Annotated[
        Literal["auto", "upright", "stored"],
        typer.Option(
            help="Pixels that the boxes refer to: of images turned as EXIF says, or as stored. "
            "auto decides by the annotated sizes, else as in the checkpoint."
        ),
    ] = "auto",
) -> None:
    """Measure a detector: the COCO metrics, and AP per class.

    Either run a checkpoint (--checkpoint) on images, in one process or under torchrun, or score a
    results file (--results) against --annotations.

    Examples:
        deformable-detr evaluate --checkpoint runs/photos/best.pth
        deformable-detr evaluate --checkpoint a.pth --images val --annotations v.json
        deformable-detr evaluate --results detections.json --annotations val.json
    """
    if results is not None:
        if overwrite or any(given is not None for given in (checkpoint, images, out, pictures)):
            raise ValueError(
                "--results must be given with --annotations only, got options of a checkpoint too; "
                "leave out --checkpoint, --images, --out, --pictures and --overwrite"
            )
        if annotations is None:
            raise ValueError("--annotations must be given with --results, got --results only")
        from deformable_detr.workflows.evaluation import score_results

        print_metrics(
            score_results(
                results, annotations, max_detections=max_detections, empty_boxes=empty_boxes
            )
        )
        return
    if checkpoint is None:
        raise ValueError("--checkpoint or --results must be given, got neither")
    if (images is None) != (annotations is None):
        raise ValueError("--images and --annotations must both be given, or neither")
    with printed_if_unwritten():
        result = deformable_detr.evaluate(
            checkpoint,
            images=images,
            annotations=annotations,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            max_detections=max_detections,
            out=out,
            pictures=pictures,
            num_pictures=num_pictures,
            overwrite=overwrite,
            empty_boxes=empty_boxes,
            exif=exif,
        )
    print_metrics(result)
