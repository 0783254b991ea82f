"""COCO evaluation of detections: the twelve metrics, and AP per class.

pycocotools does the matching and the averaging. This module collects detections from several
processes, suppresses the output of pycocotools, and handles inputs that it fails on: no
detections, no annotations, no `info`.
"""

import contextlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformable_detr.distributed import all_gather_objects
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.results_files import read_results
from deformable_detr.ground_truth import EmptyBoxes, GroundTruth, read_ground_truth
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections

# Name and meaning of pycocotools' twelve metrics, in its order.
STATISTICS = {
    "AP": "precision, IoU 0.50 to 0.95",
    "AP50": "precision, IoU 0.50",
    "AP75": "precision, IoU 0.75",
    "APs": "precision, small objects (area below 32 x 32 px)",
    "APm": "precision, medium objects",
    "APl": "precision, large objects (area above 96 x 96 px)",
    "AR1": "recall, 1 detection per image",
    "AR10": "recall, 10 detections per image",
    "AR100": "recall, 100 detections per image",
    "ARs": "recall, small objects",
    "ARm": "recall, medium objects",
    "ARl": "recall, large objects",
}
NOT_DEFINED = -1.0  # COCO's value where there are no objects


@dataclass(frozen=True)
class CocoMetrics:
    """COCO metrics of detections.

    Attributes:
        statistics: the metrics of `STATISTICS` by name, in [0, 1]; -1 if there is no annotated
            object of that size.
        class_ap: AP by class name, in [0, 1]; -1 for a class without objects.
        num_images: number of images evaluated.
        num_detections: number of detections evaluated.
    """

    statistics: dict[str, float]
    class_ap: dict[str, float]
    num_images: int
    num_detections: int

    def __post_init__(self) -> None:
        values = {**self.statistics, **self.class_ap}
        if bad := [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"metrics must be finite, got {', '.join(bad)}; check the detections")

    def as_dict(self) -> dict[str, float]:
        """Return the twelve metrics by name."""
        return dict(self.statistics)


class CocoEvaluator:
    """Accumulator of a dataset's detections that computes COCO metrics.

    Each process updates its own evaluator with the images it has seen. `synchronize` gathers the
    detections of all processes on each of them; `compute` and `results` use the detections that
    this process holds.

    Args:
        annotations: ground truth of the images.
        label_space: label space of the detections; must have the categories of `annotations`.
    """

    def __init__(self, annotations: GroundTruth, label_space: LabelSpace) -> None:
        self._annotations = annotations
        self._label_space = label_space
        label_space.contiguous().require_same(
            annotations.label_space,
            this="the label space of the detections",
            that=f"annotation file {annotations.file}",
        )
        self._image_ids = set(annotations.image_ids)
        self._tables: list[DetectionTable] = []
        self._seen: set[int] = set()

    def update(self, detections: Mapping[int, Detections]) -> None:
        """Add the detections of some images, by image id; an image seen before is ignored."""
        unknown = sorted(detections.keys() - self._image_ids)
        if unknown:
            raise ValueError(f"image ids must be of the annotation file, got unknown {unknown}")
        for image_id in sorted(detections.keys() - self._seen):
            self._tables.append(
                DetectionTable.from_detections(image_id, detections[image_id], self._label_space)
            )
            self._seen.add(image_id)

    def synchronize(self) -> None:
        """Gather the detections of all processes; every process must call it."""
        gathered = all_gather_objects(DetectionTable.concatenate(self._tables))
        self._tables = [DetectionTable.merge(gathered)]
        self._seen = set(self._tables[0].seen.tolist())

    def compute(self) -> CocoMetrics:
        """Compute the metrics of the collected detections, over the images seen."""
        ground_truth = self._annotations.to_coco()
        return summarize(run_coco(ground_truth, self.table), ground_truth)

    @property
    def table(self) -> DetectionTable:
        """Detections collected so far."""
        return DetectionTable.concatenate(self._tables)

    def results(self) -> list[dict[str, Any]]:
        """Return the collected detections as COCO results, with category ids and xywh boxes."""
        return self.table.to_results()


def evaluate_results(
    results: Path, annotations: Path, *, empty_boxes: EmptyBoxes = "missed"
) -> CocoMetrics:
    """Evaluate a file of COCO box results on all images of an annotation file.

    Args:
        results: path of the results; file names in them decide which images they are of.
        annotations: path of the annotations.
        empty_boxes: see `GroundTruth.scored`.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a file is invalid, or the two do not belong together.
    """
    truth = read_ground_truth(annotations, empty_boxes=empty_boxes)
    table = DetectionTable.from_results(read_results(results, truth), seen=truth.image_ids)
    ground_truth = truth.to_coco()
    return summarize(run_coco(ground_truth, table), ground_truth)


def run_coco(ground_truth: Mapping[str, Any], table: DetectionTable) -> COCOeval:
    """Match and accumulate as COCO does, over the images that were seen.

    Args:
        ground_truth: output of `GroundTruth.to_coco`.
        table: detections of its images; numbered from 1, like the annotations.

    Returns:
        pycocotools' evaluator, after `summarize`.

    Raises:
        ValueError: `table` has seen no image.
    """
    if len(table.seen) == 0:
        raise ValueError("at least one image must be evaluated, got none")
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = COCOeval(
            _index(ground_truth), _index(_as_annotations(ground_truth, table)), "bbox"
        )
        scorer.params.imgIds = sorted(table.seen.tolist())
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer


def summarize(scorer: COCOeval, ground_truth: Mapping[str, Any]) -> CocoMetrics:
    """Return the metrics that `run_coco` computed."""
    return CocoMetrics(
        dict(zip(STATISTICS, map(float, scorer.stats), strict=True)),
        _class_ap(scorer, LabelSpace.from_categories(ground_truth["categories"])),
        num_images=len(scorer.params.imgIds),
        num_detections=len(scorer.cocoDt.dataset["annotations"]),
    )


def distinct_names(label_space: LabelSpace) -> list[str]:
    """Return the names of K classes, with the category id added to ambiguous ones."""
    names = label_space.names
    return [
        name if names.count(name) == 1 else f"{name} (category {category_id})"
        for category_id, name in zip(label_space.category_ids, names, strict=True)
    ]


def _index(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    # A shallow copy of each annotation, as COCOeval writes flags into them.
    coco.dataset = {**content, "annotations": [dict(one) for one in content["annotations"]]}
    coco.createIndex()
    return coco


def _as_annotations(ground_truth: Mapping[str, Any], table: DetectionTable) -> dict[str, Any]:
    """Return the dataset that `COCO.loadRes` makes of results; it fails on an empty list."""
    columns = zip(
        table.image_ids.tolist(),
        table.category_ids.tolist(),
        table.boxes_xywh.tolist(),
        table.scores.tolist(),
        strict=True,
    )
    detections = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
        }
        for number, (image_id, category_id, box, score) in enumerate(columns, start=1)
    ]
    return {**ground_truth, "annotations": detections}


def _class_ap(scorer: COCOeval, label_space: LabelSpace) -> dict[str, float]:
    # (thresholds, recalls, K, areas, limits) -> all areas, 100 detections per image
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    class_ap = {}
    for label, name in enumerate(distinct_names(label_space)):
        values = precision[:, :, label]
        values = values[values > NOT_DEFINED]
        class_ap[name] = float(np.mean(values)) if values.size else NOT_DEFINED
    return class_ap
