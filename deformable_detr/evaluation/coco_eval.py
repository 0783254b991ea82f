"""COCO evaluation of detections: the twelve metrics, and AP per class.

pycocotools does the matching and the averaging. This module collects detections from several
processes, suppresses the output of pycocotools, and handles inputs that it fails on: no
detections, no annotations, no `info`.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformable_detr.arguments import require_integer
from deformable_detr.distributed import all_gather_objects
from deformable_detr.evaluation.box_scorer import BoxScorer
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.evaluation.postprocess import MAX_DETECTIONS
from deformable_detr.evaluation.results_files import read_results
from deformable_detr.ground_truth import EmptyBoxes, GroundTruth, read_ground_truth
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import listed, shown
from deformable_detr.structures import Detections

NOT_DEFINED = -1.0  # COCO's value where there are no objects


def at_limit(name: str, max_detections: int) -> str:
    """Return the name of a metric; a limit of detections other than COCO's is part of it."""
    return name if max_detections == MAX_DETECTIONS else f"{name}@{max_detections}"


def recall_limits(max_detections: int) -> tuple[int, ...]:
    """Return the numbers of detections per image at which recall is measured, ascending."""
    return (*(few for few in (1, 10) if few < max_detections), max_detections)


def statistics_at(max_detections: int) -> dict[str, str]:
    """Return name and meaning of COCO's metrics at a limit of detections, in COCO's order.

    With a limit other than COCO's 100, such as 300, the names are AP@300, AP50@300, AR300,
    ARs@300 and so on: numbers at different limits cannot be compared. AR1 and AR10 are left out
    where the limit is as low.
    """
    plain = {
        "AP": "precision, IoU 0.50 to 0.95",
        "AP50": "precision, IoU 0.50",
        "AP75": "precision, IoU 0.75",
        "APs": "precision, small objects (area below 32 x 32 px)",
        "APm": "precision, medium objects",
        "APl": "precision, large objects (area above 96 x 96 px)",
    }
    sizes = {
        "ARs": "recall, small objects",
        "ARm": "recall, medium objects",
        "ARl": "recall, large objects",
    }
    recalls = {
        f"AR{limit}": f"recall, {limit} detection{'s' if limit > 1 else ''} per image"
        for limit in recall_limits(max_detections)
    }
    return {
        **{at_limit(name, max_detections): text for name, text in plain.items()},
        **recalls,
        **{at_limit(name, max_detections): text for name, text in sizes.items()},
    }


STATISTICS = statistics_at(MAX_DETECTIONS)  # name and meaning of pycocotools' twelve metrics


@dataclass(frozen=True)
class CocoMetrics:
    """COCO metrics of detections.

    Attributes:
        statistics: the metrics of `statistics_at(max_detections)` by name, in [0, 1]; -1 if there
            is no annotated object of that size.
        class_ap: AP by class name, in [0, 1]; -1 for a class without objects.
        num_images: number of images evaluated.
        num_detections: number of detections given.
        max_detections: limit of detections per image and class.
        num_limited: number of images with more detections of a class than the limit; the others of
            that class were not scored.
    """

    statistics: dict[str, float]
    class_ap: dict[str, float]
    num_images: int
    num_detections: int
    max_detections: int = MAX_DETECTIONS
    num_limited: int = 0

    def __post_init__(self) -> None:
        values = {**self.statistics, **self.class_ap}
        if bad := [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"metrics must be finite, got {', '.join(bad)}; check the detections")

    def as_dict(self) -> dict[str, float]:
        """Return the metrics by name."""
        return dict(self.statistics)


class CocoEvaluator:
    """Accumulator of a dataset's detections that computes COCO metrics.

    Each process updates its own evaluator with the images it has seen. `synchronize` gathers the
    detections of all processes on each of them; `compute` and `results` use the detections that
    this process holds.

    Args:
        annotations: ground truth of the images.
        label_space: label space of the detections; must have the categories of `annotations`.
        max_detections: limit of detections per image; COCO's is 100.
    """

    def __init__(
        self,
        annotations: GroundTruth,
        label_space: LabelSpace,
        *,
        max_detections: int = MAX_DETECTIONS,
    ) -> None:
        require_integer("max_detections", max_detections, at_least=1)
        self.label_space = label_space
        self.max_detections = max_detections
        self._annotations = annotations
        label_space.contiguous().require_same(
            annotations.label_space,
            this="the label space of the detections",
            that=f"annotation file {shown(annotations.file)}",
        )
        self._image_ids = set(annotations.image_ids.tolist())
        self._tables: list[DetectionTable] = []
        self._seen: set[int] = set()

    def update(self, detections: Mapping[int, Detections]) -> None:
        """Add the detections of some images, by image id; an image seen before is ignored."""
        unknown = sorted(detections.keys() - self._image_ids)
        if unknown:
            raise ValueError(
                f"image ids must be of the annotation file, got unknown {listed(unknown)}"
            )
        for image_id in sorted(detections.keys() - self._seen):
            self._tables.append(
                DetectionTable.from_detections(image_id, detections[image_id], self.label_space)
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
        scorer = run_coco(ground_truth, self.table, max_detections=self.max_detections)
        return summarize(scorer, ground_truth)

    @property
    def table(self) -> DetectionTable:
        """Detections collected so far."""
        return DetectionTable.concatenate(self._tables)

    def results(self) -> list[dict[str, Any]]:
        """Return the collected detections as COCO results, with category ids and xywh boxes."""
        return self.table.to_results()


def evaluate_results(
    results: Path,
    annotations: Path,
    *,
    max_detections: int = MAX_DETECTIONS,
    empty_boxes: EmptyBoxes = "missed",
) -> CocoMetrics:
    """Evaluate a file of COCO box results on all images of an annotation file.

    Args:
        results: path of the results; file names in them decide which images they are of.
        annotations: path of the annotations.
        max_detections: limit of detections per image and class; COCO's is 100.
        empty_boxes: see `GroundTruth.scored`.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a file is invalid, or the two do not belong together.
    """
    truth = read_ground_truth(annotations, empty_boxes=empty_boxes)
    table = DetectionTable.from_results(read_results(results, truth), seen=truth.image_ids)
    ground_truth = truth.to_coco()
    scorer = run_coco(ground_truth, table, max_detections=max_detections)
    return summarize(scorer, ground_truth)


def run_coco(
    ground_truth: Mapping[str, Any],
    table: DetectionTable,
    *,
    max_detections: int = MAX_DETECTIONS,
) -> COCOeval:
    """Match and accumulate as COCO does, over the images that were seen.

    Args:
        ground_truth: output of `GroundTruth.to_coco`.
        table: detections of its images; numbered from 1, like the annotations.
        max_detections: limit of detections per image and class; the best ones count.

    Returns:
        pycocotools' evaluator of the categories that have objects or detections, after
        `accumulate`. Its own `summarize` would look for AP at 100 detections only.

    Raises:
        ValueError: `table` has seen no image, or the limit is below 1.
    """
    require_integer("max_detections", max_detections, at_least=1)
    if len(table.seen) == 0:
        raise ValueError("at least one image must be evaluated, got none")
    with contextlib.redirect_stdout(io.StringIO()):
        scorer = BoxScorer(
            _index(ground_truth), _index(_as_annotations(ground_truth, table)), "bbox"
        )
        # A category without objects and detections has no metrics; each one takes 200 kB.
        used = {one["category_id"] for one in ground_truth["annotations"]}
        used.update(table.category_ids.tolist())
        scorer.params.catIds = [one for one in scorer.params.catIds if one in used]
        scorer.params.imgIds = sorted(set(table.seen.tolist()))
        scorer.params.maxDets = list(recall_limits(max_detections))
        scorer.evaluate()
        scorer.accumulate()
    return scorer


def summarize(scorer: COCOeval, ground_truth: Mapping[str, Any]) -> CocoMetrics:
    """Return the metrics that `run_coco` computed."""
    limit = scorer.params.maxDets[-1]
    found = scorer.cocoDt.dataset["annotations"]
    counts = Counter((one["image_id"], one["category_id"]) for one in found)
    return CocoMetrics(
        dict(zip(statistics_at(limit), _statistics(scorer), strict=True)),
        _class_ap(scorer, LabelSpace.from_categories(ground_truth["categories"])),
        num_images=len(scorer.params.imgIds),
        num_detections=len(found),
        max_detections=limit,
        num_limited=len({image_id for (image_id, _), count in counts.items() if count > limit}),
    )


def precision_by_class(scorer: COCOeval) -> npt.NDArray[np.float64]:
    """Return the precision that `run_coco` computed, for all areas at the highest limit.

    Returns:
        (10, 101, K) by IoU threshold, recall and label, in [0, 1]; -1 for a class without objects.
    """
    measured = scorer.eval["precision"][:, :, :, 0, -1]
    label_space = LabelSpace.from_categories(scorer.cocoGt.dataset["categories"])
    precision = np.full((*measured.shape[:2], label_space.num_classes), NOT_DEFINED)
    precision[:, :, [label_space.label(one) for one in scorer.params.catIds]] = measured
    return precision


def distinct_names(label_space: LabelSpace) -> list[str]:
    """Return the names of K classes, with the category id added to ambiguous ones."""
    counts = Counter(label_space.names)
    return [
        name if counts[name] == 1 else f"{name} (category {category_id})"
        for category_id, name in zip(label_space.category_ids, label_space.names, strict=True)
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


def _statistics(scorer: COCOeval) -> list[float]:
    """Average as pycocotools' `summarize`, which has the limit of 100 built into AP."""
    # Axes: IoU, recall (of precision only), class, area, limit of detections.
    precision, recall = scorer.eval["precision"], scorer.eval["recall"]
    ious = scorer.params.iouThrs
    everything, *sizes = range(len(scorer.params.areaRngLbl))  # all, small, medium, large
    largest = precision[..., everything, -1]
    return [
        _mean(largest),
        *(_mean(largest[iou == ious]) for iou in (0.5, 0.75)),
        *(_mean(precision[..., size, -1]) for size in sizes),
        *(_mean(recall[..., everything, place]) for place in range(len(scorer.params.maxDets))),
        *(_mean(recall[..., size, -1]) for size in sizes),
    ]


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are defined."""
    defined = values[values > NOT_DEFINED]
    return float(np.mean(defined)) if defined.size else NOT_DEFINED


def _class_ap(scorer: COCOeval, label_space: LabelSpace) -> dict[str, float]:
    # Axes as above: all areas, the highest limit.
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    names = distinct_names(label_space)
    class_ap = dict.fromkeys(names, NOT_DEFINED)
    for place, category_id in enumerate(scorer.params.catIds):
        class_ap[names[label_space.label(category_id)]] = _mean(precision[:, :, place])
    return class_ap
