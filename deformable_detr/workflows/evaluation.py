"""Evaluation of a detector on annotated images with the COCO metrics."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deformable_detr import distributed
from deformable_detr.arguments import MOST_BATCH, MOST_WORKERS, checked, require_integer
from deformable_detr.builders import (
    build_dataset,
    build_eval_transform,
    clips_in_evaluation,
)
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config, validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.image_files import ExifRule
from deformable_detr.detector import Detector
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.coco_eval import (
    NOT_DEFINED,
    CocoEvaluator,
    CocoMetrics,
    evaluate_results,
    statistics_at,
)
from deformable_detr.evaluation.partial_results import PartialResults
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.files import WriteError, as_path
from deformable_detr.files.output_folder import OutputFile
from deformable_detr.ground_truth import EmptyBoxes
from deformable_detr.messages import shown
from deformable_detr.workflows.evaluation_places import EvaluationPlaces, write_results
from deformable_detr.workflows.measuring import measure, partial_evaluation
from deformable_detr.workflows.places import input_files, run_folder
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
    @checked
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


class UnwrittenError(WriteError):
    """Error of an evaluation whose files could not be written.

    Attributes:
        result: the metrics.
    """

    def __init__(self, message: str, reason: str, result: EvaluationResult) -> None:
        super().__init__(message, reason)
        self.result = result


@checked
def evaluate(
    checkpoint: str | Path | Detector,
    *,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 2,
    num_workers: int = 2,
    max_detections: int = MAX_DETECTIONS,
    out: str | Path | None = None,
    pictures: str | Path | None = None,
    num_pictures: int = 8,
    overwrite: bool = False,
    empty_boxes: EmptyBoxes = "missed",
    exif: ExifRule = "auto",
    callback: Callback | None = None,
) -> EvaluationResult:
    """Measure a detector on annotated images; under torchrun every process must call it.

    Args:
        checkpoint: a file as for `Detector.from_checkpoint`, or a detector.
        images: the folder of the images.
        annotations: their COCO annotation file, with the detector's categories. Without both, those
            of the run's validation set, which the checkpoint of a run names.
        device: as for `Detector.from_checkpoint`; a detector stays on its device.
        batch_size: maximum number of images per batch and process. Only images of the same
            processed size form a batch, so that nothing is padded and AP does not depend on it.
        num_workers: processes that load images, per process of the run.
        max_detections: maximum number of detections per image, the best of all classes. COCO's
            is 100; with another one, the names of the metrics carry it.
        out: COCO results file to write the detections to. If an error or Ctrl-C ends the work, what
            was found is kept beside it, in `OUT.partial.jsonl`, and the same call continues.
        pictures: folder for pictures of annotated and detected objects side by side.
        num_pictures: number of pictures, spread evenly over the images.
        overwrite: as for `predict`, of `out`, what is kept beside it, and the files in `pictures`.
        empty_boxes: whether annotated boxes without area inside their image count as "missed"
            objects, as in COCO's evaluation, or are "ignored", left out.
        exif: as the setting `data.exif`; "auto" follows the detector if no image shows it.
        callback: called with "progress", the number of finished batches and their total.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        ValueError: the annotations have other categories, an output path is not writable or must
            not be replaced, or a number is out of range.
        UnwrittenError: a file could not be written, as on a full disk; it holds the metrics.
        NonFinitePredictionsError: the model's logits or boxes of an image are infinite or NaN.
    """
    require_integer("batch_size", batch_size, at_least=1, at_most=MOST_BATCH)
    require_integer("num_workers", num_workers, at_least=0, at_most=MOST_WORKERS)
    require_integer("num_pictures", num_pictures, at_least=1)
    require_integer("max_detections", max_detections, at_least=1)
    if images is None or annotations is None:
        if images is not None or annotations is not None:
            raise ValueError("images and annotations must both be given, or neither")
        images, annotations = _validation_set(checkpoint)
    places = EvaluationPlaces.open(out, pictures, overwrite=overwrite)
    places.check((checkpoint, annotations))
    with session(device) as chosen:
        detector = _detector(checkpoint, str(chosen))
        dataset = CocoDataset(
            as_path("images", images),
            as_path("annotations", annotations),
            label_space=detector.label_space,
            empty_boxes=empty_boxes,
            exif=exif,
            exif_otherwise=detector.exif,
            channels=detector.channels,
        )
        places.check((checkpoint, annotations), dataset, count=num_pictures)
        results = None if places.out is None else places.out.path
        kept = partial_evaluation(
            results,
            detector,
            dataset,
            batch_size,
            max_detections,
            overwrite=overwrite,
            inputs=[checkpoint],
        )
        with kept as found_before:
            evaluator, metrics = measure(
                detector,
                dataset,
                batch_size=batch_size,
                num_workers=num_workers,
                max_detections=max_detections,
                partial=found_before,
                callback=callback,
            )
            result = _result(metrics)
            if distributed.is_main():
                _require_written(places.write(evaluator, dataset, count=num_pictures), result)
    return result


def _validation_set(checkpoint: str | Path | Detector) -> tuple[Path, Path]:
    """Return images and annotations of the validation set of the run that wrote a checkpoint."""
    remedy = "give images and annotations"
    if isinstance(checkpoint, Detector):
        raise ValueError(f"images and annotations must be given with a detector; {remedy}")
    path = as_path("checkpoint", checkpoint)
    config = validate_config(read_weights(path).config, source=shown(path), ignore_unknown=True)
    val = config.data.val
    if val.images is None or val.annotations is None:
        raise ValueError(f"{shown(path)} must name a validation set, got none; {remedy}")
    return val.images, val.annotations


@checked
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
        UnwrittenError: the results could not be written, as on a full disk; it holds the metrics.
    """
    require_integer("max_detections", max_detections, at_least=1)
    files = RunFolder(run_folder(run_dir, config))
    settings = load_config(config, overrides)
    with session(device, timeout_s=settings.train.timeout_s) as chosen:
        path = files.best_or_last if checkpoint is None else as_path("checkpoint", checkpoint)
        place = OutputFile(files.results, "run_dir", overwrite=files.holds_run or None)
        place.check(inputs=input_files(settings, config, path))
        detector = open_detector(settings, path, chosen)
        dataset = build_dataset(
            settings, "val", label_space=detector.label_space, exif_otherwise=detector.exif
        )
        logger.info("evaluating %s", shown(path))
        kept = partial_evaluation(
            files.results,
            detector,
            dataset,
            settings.train.eval_batch,
            max_detections,
            inputs=[path],
        )
        with kept as found_before:
            evaluator, metrics = measure_validation_set(
                settings,
                detector,
                dataset,
                max_detections=max_detections,
                partial=found_before,
                callback=callback,
            )
            result = _result(metrics)
            if distributed.is_main():
                try:
                    place.write(partial(write_results, evaluator))
                except WriteError as error:
                    _require_written([error], result)
        logger.info("the detections are in %s", shown(files.results))
    return result


@checked
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
    partial: PartialResults | None = None,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over the validation set of a config; see `measure`."""
    return measure(
        detector,
        dataset,
        batch_size=config.train.eval_batch,
        num_workers=config.data.num_workers,
        max_detections=max_detections,
        partial=partial,
        callback=callback,
    )


def _result(metrics: CocoMetrics) -> EvaluationResult:
    """Return the result; warn if there was nothing to find."""
    if set(metrics.statistics.values()) == {NOT_DEFINED} and distributed.is_main():
        logger.warning("the annotations have no objects to find, so that no metric is defined")
    return EvaluationResult.of(metrics)


def _require_written(errors: Sequence[WriteError], result: EvaluationResult) -> None:
    if errors:
        message = "; ".join(map(str, errors))
        raise UnwrittenError(message, errors[0].reason, result) from errors[0]


def _detector(checkpoint: str | Path | Detector, device: str) -> Detector:
    if isinstance(checkpoint, Detector):
        return checkpoint
    return Detector.from_checkpoint(checkpoint, device)
