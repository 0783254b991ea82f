"""Evaluation of a detector on annotated images with the COCO metrics."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.builders import build_dataset, build_eval_transform
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_loader
from deformable_detr.data.samplers import EvaluationSampler
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.detector import DEFAULT_THRESHOLD, Detector
from deformable_detr.engine import evaluate as engine
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.coco_eval import (
    STATISTICS,
    CocoEvaluator,
    CocoMetrics,
    evaluate_results,
)
from deformable_detr.files import write_whole
from deformable_detr.finite import to_json
from deformable_detr.visualize.objects import draw_annotations, draw_detections, side_by_side
from deformable_detr.workflows.places import require_file_place, require_folder_place, run_folder
from deformable_detr.workflows.session import session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a detector on annotated images.

    Attributes:
        metrics: the twelve COCO metrics by name, such as "AP50", in [0, 1]; -1 if there are no
            annotated objects of that kind.
        per_class: AP by class name; -1 as above.
        num_images: number of images scored.
        num_detections: number of detections scored.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    num_images: int
    num_detections: int

    @classmethod
    def of(cls, metrics: CocoMetrics) -> "EvaluationResult":
        """Build the result from the metrics of a data set."""
        return cls(metrics.as_dict(), metrics.class_ap, metrics.num_images, metrics.num_detections)

    def rows(self) -> list[tuple[str, float, str]]:
        """Return name, value and meaning of each metric."""
        return [(name, self.metrics[name], meaning) for name, meaning in STATISTICS.items()]


def evaluate(
    checkpoint: str | Path | Detector,
    *,
    images: str | Path,
    annotations: str | Path,
    device: str = "auto",
    batch_size: int = 2,
    num_workers: int = 2,
    out: str | Path | None = None,
    pictures: str | Path | None = None,
    num_pictures: int = 8,
    callback: Callback | None = None,
) -> EvaluationResult:
    """Measure a detector on annotated images; under torchrun every process must call it.

    Args:
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        images: the folder of the images.
        annotations: their COCO annotation file, with the detector's categories.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: images per batch and process.
        num_workers: processes that load images, per process of the run.
        out: COCO results file to write the detections to.
        pictures: folder for pictures of annotated and detected objects side by side.
        num_pictures: number of pictures, spread evenly over the images.
        callback: called with "progress", the number of finished batches and their total.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: the annotations have other categories, or an output path is not writable.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    out, pictures = (None if place is None else Path(place) for place in (out, pictures))
    if out is not None:
        require_file_place("out", out)
    if pictures is not None:
        require_folder_place("pictures", pictures)
    with session(device) as chosen:
        detector = _detector(checkpoint, str(chosen))
        dataset = CocoDataset(Path(images), Path(annotations), label_space=detector.label_space)
        evaluator, metrics = measure(
            detector,
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            callback=callback,
        )
        if distributed.is_main():
            if out is not None:
                write_results(out, evaluator)
            if pictures is not None:
                _write_pictures(evaluator, dataset, pictures, count=num_pictures)
    return EvaluationResult.of(metrics)


def evaluate_run(
    config: str | Path | RunConfig,
    *,
    overrides: Overrides = (),
    run_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    callback: Callback | None = None,
) -> EvaluationResult:
    """Measure the detector of a run, or of a file, on the validation set of a config.

    Model and classes come from the checkpoint; validation set and image size come from the config.
    The detections go to `results.json` in the run folder. Under torchrun every process must call
    it.

    Args:
        config: as for `train`; training data need not exist.
        overrides: as for `train`.
        run_dir: as for `train`.
        checkpoint: the file to measure; None for the run's `best.pth`, else its `last.pth`.
        device: as for `train`.
        callback: as for `evaluate`.

    Raises:
        ValueError: the validation set has other classes than the checkpoint.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
        FileNotFoundError: there is no checkpoint.
    """
    files = RunFolder(run_folder(run_dir, config))
    settings = load_config(config, overrides)
    with session(device, timeout_s=settings.train.timeout_s) as chosen:
        path = files.best_or_last if checkpoint is None else Path(checkpoint)
        detector = open_detector(settings, path, chosen)
        dataset = build_dataset(settings, "val", label_space=detector.label_space)
        logger.info("evaluating %s", path)
        evaluator, metrics = measure_validation_set(settings, detector, dataset, callback=callback)
        if distributed.is_main():
            write_results(files.results, evaluator)
        logger.info("the detections are in %s", files.results)
    return EvaluationResult.of(metrics)


def score_results(results: str | Path, annotations: str | Path) -> EvaluationResult:
    """Score a COCO results file against a COCO annotation file.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file does not have the COCO format, or the two do not match.
    """
    return EvaluationResult.of(evaluate_results(Path(results), Path(annotations)))


def open_detector(config: RunConfig, checkpoint: Path, device: torch.device) -> Detector:
    """Load the detector of a checkpoint, with the image size of the config."""
    detector = Detector.from_checkpoint(checkpoint, str(device))
    transform = build_eval_transform(config.data)
    if transform != detector.transform:
        logger.info(
            "images are resized to the config's size, %d, at most %d, not to the checkpoint's",
            config.data.eval_size,
            config.data.eval_max_size,
        )
    return Detector(detector.model, detector.label_space, transform=transform, device=device)


def measure_validation_set(
    config: RunConfig,
    detector: Detector,
    dataset: CocoDataset,
    *,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over the validation set of a config; see `measure`."""
    return measure(
        detector,
        dataset,
        batch_size=config.train.micro_batch,
        num_workers=config.data.num_workers,
        callback=callback,
    )


def measure(
    detector: Detector,
    dataset: CocoDataset,
    *,
    batch_size: int,
    num_workers: int,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over a data set; every process must call it.

    Args:
        detector: the detector.
        dataset: the images, with the labels of the detector.
        batch_size: images per batch and process.
        num_workers: processes that load images, per process of the run.
        callback: as for `evaluate`.

    Returns:
        The evaluator with all detections, and their metrics.
    """
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
    metrics = engine.evaluate(
        detector.model,
        Tracked(loader, "evaluating", callback=callback),
        evaluator,
        device=detector.device,
        describe=dataset.describe_id,
    )
    return evaluator, metrics


def _detector(checkpoint: str | Path | Detector, device: str) -> Detector:
    if isinstance(checkpoint, Detector):
        return checkpoint
    return Detector.from_checkpoint(checkpoint, device)


def write_results(path: Path, evaluator: CocoEvaluator) -> None:
    """Write all detections to a COCO results file; call on rank 0 only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        temporary.write_text(to_json(evaluator.results(), f"results file {path}"), "utf-8")


def _write_pictures(
    evaluator: CocoEvaluator, dataset: CocoDataset, folder: Path, *, count: int
) -> None:
    """Draw annotated and detected objects side by side, for `count` evenly spaced images."""
    folder.mkdir(parents=True, exist_ok=True)
    names, table = dataset.label_space.names, evaluator.table
    count = min(count, len(dataset))
    for index in (number * len(dataset) // count for number in range(count)):
        sample = dataset[index]
        found = table.of_image(sample.image_id, dataset.label_space).above(DEFAULT_THRESHOLD)
        pictures = [
            draw_annotations(sample.image, sample.boxes_xyxy, sample.labels, names),
            draw_detections(sample.image, found, names),
        ]
        captions = [
            f"annotated: {len(sample.labels)}",
            f"detected: {len(found)} of score {DEFAULT_THRESHOLD:g} or more",
        ]
        side_by_side(pictures, captions).save(folder / f"{sample.image_id}.png")
