"""Diagnosis of an AP that stays at zero although the loss falls.

In each image the T highest-scoring detections are compared with its T annotated objects; the share
of objects that one of these overlaps with an IoU of at least 0.5 is called "found" here. If almost
nothing is found, the comparison is repeated with other interpretations of the boxes or labels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deformable_detr import distributed
from deformable_detr.boxes import iou_xyxy, xywh_to_xyxy, xyxy_to_xywh
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.evaluation.detection_table import DetectionTable
from deformable_detr.ground_truth import GroundTruth

MAX_IMAGES = 200  # with objects; enough to see a fault that all images have
IOU_THRESHOLD = 0.5  # that of AP50
# A reading is an explanation if it finds this share of the objects, and this many times more.
EXPLAINS_SHARE = 0.2
EXPLAINS_TIMES = 3.0
FAR_SMALLER = 20.0  # ratio of box sizes that a lack of training alone does not explain
_SHOWN_PAIRS = 3


@dataclass(frozen=True)
class ImagePair:
    """Annotated objects of an image, and its T highest-scoring detections.

    Attributes:
        size: (width, height, width, height) in pixels.
        objects_xywh: (T, 4) pixels.
        categories: (T,) ids.
        detections_xywh: (R, 4) pixels; R <= T.
        detected_categories: (R,) ids.
        scores: (R,) in [0, 1].
    """

    size: Tensor
    objects_xywh: Tensor
    categories: Tensor
    detections_xywh: Tensor
    detected_categories: Tensor
    scores: Tensor


_Reading = Callable[[Tensor, Tensor], Tensor]  # boxes, size -> boxes


def _corners(boxes: Tensor, size: Tensor) -> Tensor:
    return xyxy_to_xywh(boxes)


def _from_corners(boxes: Tensor, size: Tensor) -> Tensor:
    return xywh_to_xyxy(boxes)


def _centers(boxes: Tensor, size: Tensor) -> Tensor:
    return torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]), dim=1)


def _from_centers(boxes: Tensor, size: Tensor) -> Tensor:
    return torch.cat((boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]), dim=1)


def _swapped(boxes: Tensor, size: Tensor) -> Tensor:
    return boxes[:, [1, 0, 3, 2]]


def _fractions(boxes: Tensor, size: Tensor) -> Tensor:
    return boxes * size


def _from_fractions(boxes: Tensor, size: Tensor) -> Tensor:
    return boxes / size


# Formats that the bbox of one of the two annotation files may have instead of x, y, width and
# height in pixels, and the conversion of detections that makes up for it.
_READINGS: Mapping[str, tuple[str, _Reading]] = {
    "corners": ("the training set's bbox holds corners (x1, y1, x2, y2)", _corners),
    "from corners": ("the validation set's bbox holds corners (x1, y1, x2, y2)", _from_corners),
    "centers": ("the training set's bbox holds center x, y, width, height", _centers),
    "from centers": ("the validation set's bbox holds center x, y, width, height", _from_centers),
    "swapped": ("one of the sets' bbox holds y, x, height, width", _swapped),
    "fractions": ("the training set's bbox holds fractions of the image", _fractions),
    "from fractions": ("the validation set's bbox holds fractions of the image", _from_fractions),
}
_REMEDY = "COCO needs x, y, width and height of the box in pixels: rewrite that file"


def explain_zero_ap(ground_truth: Mapping[str, Any], table: DetectionTable) -> str:
    """Return the most likely cause and the numbers that support it.

    Args:
        ground_truth: result of `GroundTruth.to_coco`.
        table: detections of its images.
    """
    pairs = _pairs(ground_truth, table)
    num_objects = sum(len(pair.categories) for pair in pairs)
    if num_objects == 0:
        return "the evaluated validation images have no annotated objects: AP is undefined"
    if sum(len(pair.scores) for pair in pairs) == 0:
        return "there is no detection in any image with objects"
    found = _found(pairs)
    right = _found(pairs, with_labels=True)
    shares = {name: _found(pairs, reading) for name, (_, reading) in _READINGS.items()}
    best = max(shares, key=lambda name: shares[name])
    if _explains(shares[best], found):
        return (
            f"box format: {shares[best]:.0%} of {num_objects} objects are found if "
            f"{_READINGS[best][0]}, {found:.0%} otherwise; {_REMEDY}"
        )
    if _explains(found, right):
        return (
            f"labels: {found:.0%} of {num_objects} objects are found, but {right:.0%} with the "
            f"right class; {_confusion(pairs, ground_truth)}; the category ids of the training "
            "and the validation file have different meanings"
        )
    return _describe_sizes(pairs) or _undertrained(pairs, found)


def _explains(share: float, otherwise: float) -> bool:
    return share >= EXPLAINS_SHARE and share >= EXPLAINS_TIMES * otherwise


def _describe_sizes(pairs: list[ImagePair]) -> str:
    """Return a message if detections and objects differ in size too much, else ""."""
    objects = torch.cat([pair.objects_xywh[:, 2:].prod(1).sqrt() for pair in pairs]).median()
    detected = torch.cat([pair.detections_xywh[:, 2:].prod(1).sqrt() for pair in pairs]).median()
    smaller, larger = sorted((float(objects), float(detected)))
    if smaller * FAR_SMALLER > larger:
        return ""
    return (
        f"box format: the median size of the detections is {detected:.3g} px, that of the objects "
        f"{objects:.3g} px; one of the sets' bbox holds fractions of the image, or is for images "
        f"of another size; {_REMEDY}"
    )


def _undertrained(pairs: list[ImagePair], found: float) -> str:
    """Return the fallback message, with the numbers that are known."""
    best = torch.cat([_ious(pair).max(1).values for pair in pairs if len(pair.scores)])
    scores = torch.cat([pair.scores for pair in pairs])
    return (
        f"probably not enough training yet: {found:.0%} of the objects are found, and no other "
        "reading of boxes or labels explains that; the median IoU of an object with its best "
        f"detection is {best.median():.2f}, the highest score {scores.max():.2f}; train longer, "
        "or start from pretrained weights; --overfit 4 checks that the model can overfit the data"
    )


def _found(
    pairs: list[ImagePair], reading: _Reading | None = None, *, with_labels: bool = False
) -> float:
    """Return the share of objects found; a detection counts for at most one object."""
    count, total = 0, 0
    for pair in pairs:
        total += len(pair.categories)
        count += len(_matches(_ious(pair, reading), pair if with_labels else None))
    return count / total


def _matches(iou: Tensor, same_class_in: ImagePair | None = None) -> list[tuple[int, int]]:
    """Return (object, detection) pairs, the highest IoU first."""
    if same_class_in is not None:
        pair = same_class_in
        iou = iou.masked_fill(pair.categories[:, None] != pair.detected_categories[None], 0.0)
    pairs = []
    iou = iou.clone()
    while iou.numel() and iou.max() >= IOU_THRESHOLD:
        thing, detection = divmod(int(iou.argmax()), iou.shape[1])
        pairs.append((thing, detection))
        iou[thing] = 0.0
        iou[:, detection] = 0.0
    return pairs


def _ious(pair: ImagePair, reading: _Reading | None = None) -> Tensor:
    """Return the (T, R) IoU of objects and detections; 0 for a box of negative size."""
    boxes = pair.detections_xywh
    if reading is not None:
        boxes = reading(boxes, pair.size)
    boxes = torch.cat((boxes[:, :2], boxes[:, 2:].clamp(min=0.0)), dim=1)
    iou = iou_xyxy(xywh_to_xyxy(pair.objects_xywh)[:, None], xywh_to_xyxy(boxes)[None])
    return iou.nan_to_num(0.0)


def _confusion(pairs: list[ImagePair], ground_truth: Mapping[str, Any]) -> str:
    """Return a text that lists the most frequent confusions of classes."""
    names = {one["id"]: f"{one['name']} ({one['id']})" for one in ground_truth["categories"]}
    counts: dict[str, int] = {}
    for pair in pairs:
        for thing, detection in _matches(_ious(pair)):
            true, seen = pair.categories[thing], pair.detected_categories[detection]
            if true != seen:
                text = f"{names[int(true)]} is detected as {names[int(seen)]}"
                counts[text] = counts.get(text, 0) + 1
    frequent = sorted(counts, key=lambda text: -counts[text])[:_SHOWN_PAIRS]
    return ", ".join(f"{text} {counts[text]} times" for text in frequent)


def _pairs(ground_truth: Mapping[str, Any], table: DetectionTable) -> list[ImagePair]:
    """Return the first evaluated images that have objects."""
    objects: dict[int, list[Mapping[str, Any]]] = {}
    seen = set(table.seen.tolist())
    for annotation in ground_truth["annotations"]:
        if annotation["image_id"] in seen and not annotation.get("iscrowd"):
            objects.setdefault(annotation["image_id"], []).append(annotation)
    sizes = {
        one["id"]: (one.get("width", 0), one.get("height", 0)) for one in ground_truth["images"]
    }
    pairs = []
    for image_id in sorted(objects)[:MAX_IMAGES]:
        things = objects[image_id]
        rows = np.flatnonzero(table.image_ids == image_id)
        rows = rows[np.argsort(-table.scores[rows], kind="stable")][: len(things)]
        pairs.append(
            ImagePair(
                torch.tensor(sizes[image_id] * 2, dtype=torch.float64),
                torch.tensor([thing["bbox"] for thing in things], dtype=torch.float64),
                torch.tensor([thing["category_id"] for thing in things]),
                torch.from_numpy(table.boxes_xywh[rows]),
                torch.from_numpy(table.category_ids[rows]),
                torch.from_numpy(table.scores[rows]),
            )
        )
    return pairs


logger = logging.getLogger(__name__)
MIN_EVALUATIONS = 2
ZERO_AP50 = 0.001
FALLEN_TO = 0.8  # share of the initial loss below which the model has learned something


def warn_of_zero_ap(
    folder: RunFolder, annotations: GroundTruth, detections: DetectionTable
) -> None:
    """Warn with the likely cause, after an evaluation, if AP stays 0 although the loss falls."""
    if distributed.is_main() and ap_stays_zero(read_records(folder.metrics)):
        finding = explain_zero_ap(annotations.to_coco(), detections)
        logger.warning("the loss falls, but AP50 stays 0: %s", finding)


def ap_stays_zero(records: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the last evaluation is the first to show that AP50 stays 0 as the loss falls.

    Args:
        records: records of the metrics file, up to that evaluation.
    """
    ends = [0, *(i for i, one in enumerate(records, 1) if one["kind"] == "evaluation")]
    return _stays_zero(records[: ends[-1]]) and not _stays_zero(records[: ends[-2]])


def _stays_zero(records: Sequence[Mapping[str, Any]]) -> bool:
    losses = [one["total"] for one in records if one["kind"] == "train"]
    aps = [one["AP50"] for one in records if one["kind"] == "evaluation"]
    return (
        len(aps) >= MIN_EVALUATIONS
        and max(aps) < ZERO_AP50
        and len(losses) > 1
        and losses[-1] < FALLEN_TO * losses[0]
    )
