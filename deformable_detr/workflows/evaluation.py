"""Evaluation of a detector on annotated images with the COCO metrics."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deformable_detr import distributed
from deformable_detr.arguments import MOST_WORKERS, require_integer
from deformable_detr.builders import (
    build_dataset,
    build_eval_transform,
    clips_in_evaluation,
)
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.image_files import ExifRule
from deformable_detr.data.loader import build_evaluation_loader
from deformable_detr.detector import DEFAULT_THRESHOLD, Detector
from deformable_detr.engine import evaluate as engine
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.coco_eval import (
    NOT_DEFINED,
    CocoEvaluator,
    CocoMetrics,
    evaluate_results,
    statistics_at,
)
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.files import as_path, write_whole
from deformable_detr.finite import to_json
from deformable_detr.ground_truth import EmptyBoxes, GroundTruth
from deformable_detr.messages import counted, shown
from deformable_detr.visualize.objects import draw_annotations, draw_detections, side_by_side
from deformable_detr.workflows.places import require_file_place, require_folder_place, run_folder
from deformable_detr.workflows.session import session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a detector on annotated images.

    Attributes:
        metrics: the twelve COCO metrics by name, such as "AP50", in [0, 1]; -1 if there are no
            annotated objects of that kind. If the limit is not COCO's 100, the names carry it, such
            as "AP50@300" and "AR300".
        per_class: AP by class name; -1 as above.
        num_images: number of images scored.
        num_detections: number of detections given.
        max_detections: limit of detections per image.
    """

    metrics: dict[str, float]
    per_class: dict[str, float]
    num_images: int
    num_detections: int
    max_detections: int = MAX_DETECTIONS

    @classmethod
    def of(cls, metrics: CocoMetrics) -> "EvaluationResult":
        """Build the result from the metrics of a data set."""
        return cls(
            metrics.as_dict(),
            metrics.class_ap,
            metrics.num_images,
            metrics.num_detections,
            metrics.max_detections,
        )

    def rows(self) -> list[tuple[str, float, str]]:
        """Return name, value and meaning of each metric."""
        meanings = statistics_at(self.max_detections)
        return [(name, self.metrics[name], meaning) for name, meaning in meanings.items()]


def evaluate(
    checkpoint: str | Path | Detector,
    *,
    images: str | Path,
    annotations: str | Path,
    device: str = "auto",
    batch_size: int = 2,
    num_workers: int = 2,
    max_detections: int = MAX_DETECTIONS,
    out: str | Path | None = None,
    pictures: str | Path | None = None,
    num_pictures: int = 8,
    empty_boxes: EmptyBoxes = "missed",
    exif: ExifRule = "auto",
    callback: Callback | None = None,
) -> EvaluationResult:
    """Measure a detector on annotated images; under torchrun every process must call it.

    Args:
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        images: the folder of the images.
        annotations: their COCO annotation file, with the detector's categories.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: maximum number of images per batch and process. Only images of the same
            processed size form a batch, so that nothing is padded and AP does not depend on it.
        num_workers: processes that load images, per process of the run.
        max_detections: maximum number of detections per image, the best of all classes. COCO's
            is 100; with another one, the names of the metrics carry it.
        out: COCO results file to write the detections to.
        pictures: folder for pictures of annotated and detected objects side by side.
        num_pictures: number of pictures, spread evenly over the images.
        empty_boxes: whether annotated boxes without area inside their image count as "missed"
            objects, as in COCO's evaluation, or are "ignored", left out.
        exif: as the setting `data.exif`; "auto" follows the detector if no image shows it.
        callback: called with "progress", the number of finished batches and their total.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: the annotations have other categories, an output path is not writable, or a
            number is out of range.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_integer("batch_size", batch_size, at_least=1)
    require_integer("num_workers", num_workers, at_least=0, at_most=MOST_WORKERS)
    require_integer("num_pictures", num_pictures, at_least=1)
    require_integer("max_detections", max_detections, at_least=1)
    out = None if out is None else as_path("out", out)
    pictures = None if pictures is None else as_path("pictures", pictures)
    if out is not None:
        require_file_place("out", out)
    if pictures is not None:
        require_folder_place("pictures", pictures)
    with session(device) as chosen:
        detector = _detector(checkpoint, str(chosen))
        dataset = CocoDataset(
            as_path("images", images),
            as_path("annotations", annotations),
            label_space=detector.label_space,
            empty_boxes=empty_boxes,
            exif=exif,
            exif_otherwise=detector.exif,
        )
        evaluator, metrics = measure(
            detector,
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            max_detections=max_detections,
            callback=callback,
        )
        if distributed.is_main():
            if out is not None:
                write_results(out, evaluator)
            if pictures is not None:
                _write_pictures(evaluator, dataset, pictures, count=num_pictures)
    return _result(metrics)


def evaluate_run(
    config: str | Path | RunConfig,
    *,
    overrides: Overrides = (),
    run_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    max_detections: int = MAX_DETECTIONS,
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
        max_detections: as for `evaluate`.
        device: as for `train`.
        callback: as for `evaluate`.

    Raises:
        ValueError: the validation set has other classes than the checkpoint, or the limit is below
            1.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
        FileNotFoundError: there is no checkpoint.
    """
    require_integer("max_detections", max_detections, at_least=1)
    files = RunFolder(run_folder(run_dir, config))
    settings = load_config(config, overrides)
    with session(device, timeout_s=settings.train.timeout_s) as chosen:
        path = files.best_or_last if checkpoint is None else as_path("checkpoint", checkpoint)
        detector = open_detector(settings, path, chosen)
        dataset = build_dataset(
            settings, "val", label_space=detector.label_space, exif_otherwise=detector.exif
        )
        logger.info("evaluating %s", shown(path))
        evaluator, metrics = measure_validation_set(
            settings, detector, dataset, max_detections=max_detections, callback=callback
        )
        if distributed.is_main():
            write_results(files.results, evaluator)
        logger.info("the detections are in %s", shown(files.results))
    return _result(metrics)


def score_results(
    results: str | Path,
    annotations: str | Path,
    *,
    max_detections: int = MAX_DETECTIONS,
    empty_boxes: EmptyBoxes = "missed",
) -> EvaluationResult:
    """Score a COCO results file against a COCO annotation file.

    Args:
        results: path of the results; where they have a `file_name`, it decides the image.
        annotations: path of the annotations.
        max_detections: maximum number of detections per image and class that are scored, the best
            ones, as pycocotools limits a results file. COCO's is 100; with another one, the names
            of the metrics carry it. A warning counts the images where detections are left out.
        empty_boxes: as for `evaluate`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file does not have the COCO format, the two do not match, or the limit is
            below 1.
    """
    metrics = evaluate_results(
        as_path("results", results),
        as_path("annotations", annotations),
        max_detections=max_detections,
        empty_boxes=empty_boxes,
    )
    if metrics.num_limited:
        logger.warning(
            "%d of %d images have more than %d detections of a class in %s; only the best %d are "
            "scored; max_detections is the limit",
            metrics.num_limited,
            metrics.num_images,
            max_detections,
            shown(results),
            max_detections,
        )
    return _result(metrics)


def open_detector(config: RunConfig, checkpoint: Path, device: torch.device) -> Detector:
    """Load the detector of a checkpoint, with image size and clipping of the config."""
    detector = Detector.from_checkpoint(checkpoint, str(device))
    transform = build_eval_transform(config.data)
    if transform != detector.transform:
        logger.info(
            "images are resized to the config's size, %d, at most %d, not to the checkpoint's",
            config.data.eval_size,
            config.data.eval_max_size,
        )
    clips = clips_in_evaluation(config)
    if clips != detector.clip_in_evaluation:
        logger.info(
            "boxes are %sclipped to the image as the config says; the checkpoint's settings say "
            "otherwise (data.clip_boxes, match_official)",
            "" if clips else "not ",
        )
    return Detector(
        detector.model,
        detector.label_space,
        transform=transform,
        device=device,
        clip_boxes=config.data.clip_boxes,
        clip_in_evaluation=clips,
        exif=detector.exif,
    )


def measure_validation_set(
    config: RunConfig,
    detector: Detector,
    dataset: CocoDataset,
    *,
    max_detections: int = MAX_DETECTIONS,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over the validation set of a config; see `measure`."""
    return measure(
        detector,
        dataset,
        batch_size=config.train.eval_batch,
        num_workers=config.data.num_workers,
        max_detections=max_detections,
        callback=callback,
    )


def measure(
    detector: Detector,
    dataset: CocoDataset,
    *,
    batch_size: int,
    num_workers: int,
    max_detections: int = MAX_DETECTIONS,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over a data set; every process must call it.

    Args:
        detector: the detector.
        dataset: the images, with the labels of the detector.
        batch_size: as for `evaluate`.
        num_workers: processes that load images, per process of the run.
        max_detections: as for `evaluate`.
        callback: as for `evaluate`.

    Returns:
        The evaluator with all detections, and their metrics.
    """
    loader = build_evaluation_loader(
        dataset,
        detector.transform,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=detector.device.type == "cuda",
    )
    if distributed.is_main():
        _log_counts(dataset.annotations, max_detections)
    evaluator = CocoEvaluator(
        dataset.annotations, detector.label_space, max_detections=max_detections
    )
    metrics = engine.evaluate(
        detector.model,
        Tracked(loader, "evaluating", callback=callback),
        evaluator,
        device=detector.device,
        clip=detector.clip_in_evaluation,
        describe=dataset.describe_id,
    )
    return evaluator, metrics


def _log_counts(annotations: GroundTruth, max_detections: int) -> None:
    """Log the size of a data set; warn of images with more objects than detections are kept."""
    counts = np.bincount(annotations.images[~annotations.is_crowd])
    logger.info(
        "%s with %s, at most %d detections per image",
        counted(len(annotations.image_ids), "image"),
        counted(int(counts.sum()), "annotated object"),
        max_detections,
    )
    crowded = int((counts > max_detections).sum())
    if crowded:
        logger.warning(
            "%d of %d images have more than %d annotated objects, of which at most %d can be "
            "found; max_detections is the limit",
            crowded,
            len(annotations.image_ids),
            max_detections,
            max_detections,
        )


def _result(metrics: CocoMetrics) -> EvaluationResult:
    """Return the result; warn if there was nothing to find."""
    if set(metrics.statistics.values()) == {NOT_DEFINED} and distributed.is_main():
        logger.warning("the annotations have no objects to find, so that no metric is defined")
    return EvaluationResult.of(metrics)


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
