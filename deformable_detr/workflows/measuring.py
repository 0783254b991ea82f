"""Measurement of a detector on a data set, which continues from partial results."""

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from deformable_detr import distributed
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_evaluation_loader
from deformable_detr.detector import Detector
from deformable_detr.engine import evaluate as engine
from deformable_detr.engine.run.progress import Tracked
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.evaluation.coco_eval import CocoEvaluator, CocoMetrics
from deformable_detr.evaluation.partial_results import PartialResults
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.ground_truth import GroundTruth
from deformable_detr.messages import counted
from deformable_detr.workflows.unfinished import partial_results_of

logger = logging.getLogger(__name__)


def measure(
    detector: Detector,
    dataset: CocoDataset,
    *,
    batch_size: int,
    num_workers: int,
    max_detections: int = MAX_DETECTIONS,
    partial: PartialResults | None = None,
    callback: Callback | None = None,
) -> tuple[CocoEvaluator, CocoMetrics]:
    """Run a detector over a data set; every process must call it.

    Args:
        detector: the detector.
        dataset: the images, with the labels of the detector.
        batch_size: as for `evaluate`.
        num_workers: processes that load images, per process of the run.
        max_detections: as for `evaluate`.
        partial: detections that need not be computed again; those of each batch are added.
        callback: as for `evaluate`.

    Returns:
        The evaluator with all detections, and their metrics.
    """
    known = set() if partial is None else partial.done
    loader = build_evaluation_loader(
        dataset,
        detector.transform,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=detector.device.type == "cuda",
        done={index for index, image_id in enumerate(dataset.image_ids) if image_id in known},
    )
    if distributed.is_main():
        _log_counts(dataset.annotations, max_detections)
    evaluator = CocoEvaluator(
        dataset.annotations, detector.label_space, max_detections=max_detections
    )
    if partial is not None:
        evaluator.update({int(image_id): one for image_id, one in partial.found.items()})
    metrics = engine.evaluate(
        detector.model,
        Tracked(loader, "evaluating", callback=callback),
        evaluator,
        device=detector.device,
        clip=detector.clip_in_evaluation,
        describe=dataset.describe_id,
        keep=None if partial is None else partial.add,
    )
    return evaluator, metrics


def partial_evaluation(
    result: Path | None,
    detector: Detector,
    dataset: CocoDataset,
    batch_size: int,
    max_detections: int,
    *,
    overwrite: bool | None = None,
    inputs: Iterable[object] = (),
) -> AbstractContextManager[PartialResults | None]:
    """Open the partial results of an evaluation beside its file of results, if it writes one."""
    return partial_results_of(
        result,
        detector,
        dataset.files,
        annotations=dataset.annotations.file,
        overwrite=overwrite,
        inputs=inputs,
        max_detections=max_detections,
        batch_size=batch_size,
        exif=dataset.exif,
        clip_boxes=detector.clip_in_evaluation,
    )


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
