"""`deformable-detr evaluate`: how good a detector, or a file of its results, is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deformable_detr.cli.outputs import require_file_place, require_folder_place

# What needs PyTorch is imported when the command runs, so that help is there at once.
if TYPE_CHECKING:
    from deformable_detr.data.coco import CocoDataset
    from deformable_detr.detector import Detector
    from deformable_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics


def evaluate(
    annotations: Annotated[
        Path, typer.Option(metavar="JSON", help="COCO annotation file to compare with.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checkpoint of `train`, or weights from elsewhere."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the annotated images.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            help="Score this COCO results file instead of running a checkpoint.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.")
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images that run at once, in each process.")
    ] = 2,
    num_workers: Annotated[
        int, typer.Option(min=0, help="Processes that read images, for each process.")
    ] = 2,
    out: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Write the detections as COCO results.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write pictures there: what is annotated, what is detected."
        ),
    ] = None,
    num_pictures: Annotated[
        int, typer.Option(min=1, help="How many pictures, spread over the images.")
    ] = 8,
) -> None:
    """Measure a detector: the twelve numbers of COCO, and the AP of each class.

    Either run a checkpoint on images (--checkpoint, --images), on one process or under torchrun,
    or score a file of results (--results).
    """
    if results is not None:
        if any(given is not None for given in (checkpoint, images, out, pictures)):
            raise ValueError(
                "--results must stand alone with --annotations, got options of a checkpoint too; "
                "leave out --checkpoint, --images, --out and --pictures"
            )
        from deformable_detr.evaluation.coco_eval import evaluate_results

        _print_metrics(evaluate_results(results, annotations))
        return
    if checkpoint is None or images is None:
        raise ValueError("--checkpoint and --images must both be given, or else --results")
    if out is not None:
        require_file_place("--out", out)
    if pictures is not None:
        require_folder_place("--pictures", pictures)

    from deformable_detr import distributed

    chosen = distributed.choose_device(device)
    distributed.start(chosen)
    try:
        _evaluate_checkpoint(
            checkpoint,
            images,
            annotations,
            device=str(chosen),
            batch_size=batch_size,
            num_workers=num_workers,
            out=out,
            pictures=pictures,
            num_pictures=num_pictures,
        )
    finally:
        distributed.stop()


def _evaluate_checkpoint(
    checkpoint: Path,
    images: Path,
    annotations: Path,
    *,
    device: str,
    batch_size: int,
    num_workers: int,
    out: Path | None,
    pictures: Path | None,
    num_pictures: int,
) -> None:
    from deformable_detr.data.coco import CocoDataset
    from deformable_detr.detector import Detector

    detector = Detector.from_checkpoint(checkpoint, device)
    evaluate_detector(
        detector,
        CocoDataset(images, annotations, label_space=detector.label_space),
        batch_size=batch_size,
        num_workers=num_workers,
        out=out,
        pictures=pictures,
        num_pictures=num_pictures,
    )


def evaluate_detector(
    detector: "Detector",
    dataset: "CocoDataset",
    *,
    batch_size: int,
    num_workers: int,
    out: Path | None,
    pictures: Path | None = None,
    num_pictures: int = 1,
) -> None:
    """Measure a detector and print its numbers; every process must call it.

    Args:
        detector: what to measure.
        dataset: the images, with the labels of the detector.
        batch_size: images that run at once in each process.
        num_workers: processes that read images, for each process.
        out: where to write the detections, as COCO results.
        pictures: folder for pictures of what is annotated and what is detected.
        num_pictures: how many.
    """
    from deformable_detr import distributed

    evaluator, metrics = measure(detector, dataset, batch_size=batch_size, num_workers=num_workers)
    if not distributed.is_main():
        return
    _print_metrics(metrics)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(evaluator.results()), encoding="utf-8")
    if pictures is not None:
        _write_pictures(detector, dataset, pictures, count=num_pictures)


def measure(
    detector: "Detector",
    dataset: "CocoDataset",
    *,
    batch_size: int,
    num_workers: int,
) -> "tuple[CocoEvaluator, CocoMetrics]":
    """Run a detector over a data set; every process must call it, as for `evaluate_detector`.

    Returns:
        All its detections, and its numbers.
    """
    from deformable_detr import distributed
    from deformable_detr.data.loader import build_loader
    from deformable_detr.data.samplers import EvaluationSampler
    from deformable_detr.data.transformed import TransformedDataset
    from deformable_detr.engine import evaluate as engine
    from deformable_detr.evaluation.coco_eval import CocoEvaluator

    sampler = EvaluationSampler(
        len(dataset),
        batch_size=batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    loader = build_loader(
        TransformedDataset(dataset, detector.transform, seed=0),
        sampler,
        num_workers=num_workers,
        pin_memory=detector.device.type == "cuda",
    )
    evaluator = CocoEvaluator(dataset.annotations, detector.label_space)
    metrics = engine.evaluate(detector.model, loader, evaluator, device=detector.device)
    return evaluator, metrics


def _write_pictures(
    detector: "Detector", dataset: "CocoDataset", folder: Path, *, count: int
) -> None:
    """Annotated and detected objects side by side, for images evenly spread over the data set."""
    from deformable_detr.detector import DEFAULT_THRESHOLD
    from deformable_detr.visualize.objects import draw_annotations, draw_detections, side_by_side

    folder.mkdir(parents=True, exist_ok=True)
    names = detector.label_space.names
    count = min(count, len(dataset))
    for index in (number * len(dataset) // count for number in range(count)):
        sample = dataset[index]
        found = detector.predict(sample.image)
        picture = side_by_side(
            [
                draw_annotations(sample.image, sample.boxes_xyxy, sample.labels, names),
                draw_detections(sample.image, found, names),
            ],
            [
                f"annotated: {len(sample.labels)}",
                f"detected: {len(found)} of score {DEFAULT_THRESHOLD:g} or more",
            ],
        )
        picture.save(folder / f"{sample.image_id}.png")


def _print_metrics(metrics: "CocoMetrics") -> None:
    from deformable_detr.evaluation.coco_eval import STATISTICS

    console = Console()
    table = Table(title=f"{metrics.num_detections} detections in {metrics.num_images} images")
    for heading in ("", "value"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("meaning")
    for name, meaning in STATISTICS.items():
        table.add_row(name, _number(metrics.statistics[name]), meaning)
    console.print(table)

    classes = Table(title="AP of each class")
    classes.add_column("class")
    classes.add_column("AP", justify="right", no_wrap=True)
    for name, value in metrics.class_ap.items():
        classes.add_row(escape(name), _number(value))
    console.print(classes)


def _number(value: float) -> str:
    """Three digits, or a dash where the annotations hold nothing of the kind."""
    return "-" if value < 0 else f"{value:.3f}"
