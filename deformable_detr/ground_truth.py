"""GroundTruth: annotated objects that detections are scored against, and checks of COCO JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Size

SHOWN = 5  # offending values an error lists


@dataclass(frozen=True)
class GroundTruth:
    """Content of a COCO annotation file for scoring: T objects, crowds included, in file order.

    Objects are stored as columns, which are cheap to keep and to send to worker processes.

    Attributes:
        file: the annotation file.
        label_space: its categories, in the order of their ids.
        image_ids: ids of the I images.
        file_names: `file_name` of the I images, "" if not in the file.
        image_sizes: (height, width) of the I images in pixels, (0, 0) if not in the file.
        images: (T,) int64 index into `image_ids` per object.
        categories: (T,) int64 index into `label_space.category_ids` per object.
        boxes_xywh: (T, 4) float64 boxes in pixels, as in the file.
        area: (T,) float64 areas in square pixels; area of the box if not in the file.
        is_crowd: (T,) bool.
    """

    file: Path
    label_space: LabelSpace
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    image_sizes: tuple[Size, ...]
    images: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    area: npt.NDArray[np.float64]
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, file: Path, record: Mapping[str, Any]) -> "GroundTruth":
        """Build from the content of a file that has been checked."""
        objects = record.get("annotations", [])
        label_space = LabelSpace.from_categories(record["categories"])
        image_ids = tuple(one["id"] for one in record["images"])
        images = {image_id: place for place, image_id in enumerate(image_ids)}
        labels = {category_id: place for place, category_id in enumerate(label_space.category_ids)}
        return cls(
            file,
            label_space,
            image_ids,
            tuple(str(one.get("file_name") or "") for one in record["images"]),
            tuple(_size(one) for one in record["images"]),
            np.array([images[one["image_id"]] for one in objects], dtype=np.int64),
            np.array([labels[one["category_id"]] for one in objects], dtype=np.int64),
            np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4),
            np.array([one.get("area", _box_area(one)) for one in objects], dtype=np.float64),
            np.array([bool(one.get("iscrowd")) for one in objects], dtype=np.bool_),
        )

    def to_coco(self) -> dict[str, Any]:
        """Return `images`, `categories` and `annotations` for pycocotools.

        Annotations are renumbered from 1: pycocotools treats id 0 as "not matched", and keeps only
        one of several annotations that share an id.
        """
        sizes = zip(self.image_ids, self.image_sizes, strict=True)
        objects = zip(
            [self.image_ids[place] for place in self.images.tolist()],
            [self.label_space.category_ids[place] for place in self.categories.tolist()],
            self.boxes_xywh.tolist(),
            self.area.tolist(),
            self.is_crowd.tolist(),
            strict=True,
        )
        return {
            "images": [
                {"id": image_id, "height": height, "width": width}
                for image_id, (height, width) in sizes
            ],
            "categories": self.label_space.to_json(),
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for number, (image_id, category_id, box, area, is_crowd) in enumerate(objects, 1)
            ],
        }


def read_ground_truth(file: Path) -> GroundTruth:
    """Read a COCO annotation file for scoring; its images need not exist.

    Keys that scoring does not need, such as `info`, may be missing. Defaults are: `annotations`
    none, `iscrowd` 0, `area` that of the box. For training, `data.annotations` has more checks.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not COCO JSON, or an annotation cannot be scored.
    """
    record = read_json(file, "annotation file")
    if not isinstance(record, dict):
        raise ValueError(f"annotation file {file} must hold an object, got {kind_of(record)}")
    for key in ("images", "categories"):
        check_objects(record.get(key), ("id",), f"{key} of {file}")
    LabelSpace.from_categories(record["categories"])  # raises for duplicate ids
    annotations = record.get("annotations", [])
    where = f"annotations of {file}"
    check_objects(annotations, ("image_id", "category_id"), where)
    check_known(annotations, "image_id", record["images"], where)
    check_known(annotations, "category_id", record["categories"], where)
    for position, annotation in enumerate(annotations):
        check_box(annotation, position, where)
        check_number(annotation.get("area", _box_area(annotation)), "area", position, where)
    return GroundTruth.of(file, record)


def read_json(file: Path, what: str) -> Any:
    """Read a JSON file; `what` names it in errors."""
    try:
        return json.loads(file.read_bytes())  # UTF-8 with or without a byte order mark
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {file} must exist, found nothing there") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {file} must be JSON, got {error}") from error


def check_objects(items: Any, ids: Sequence[str], where: str) -> None:
    """Require a list of objects, each with integers at the keys `ids`."""
    if not isinstance(items, list):
        raise ValueError(f"{where} must be a list, got {kind_of(items)}")
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{where}: entry {position} must be an object, got {kind_of(item)}")
        for key in ids:
            if type(item.get(key)) is not int:
                raise ValueError(
                    f"{where}: entry {position} must have an integer {key}, got {item.get(key)!r}"
                )


def check_known(
    items: Iterable[Mapping[str, Any]], key: str, known: Iterable[Mapping[str, Any]], where: str
) -> None:
    """Require the ids at `key` to be ids of `known`."""
    unknown = sorted({item[key] for item in items} - {item["id"] for item in known})
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise ValueError(
            f"{where} must use the {key} of the annotation file, "
            f"got unknown {', '.join(map(str, unknown[:SHOWN]))}{more}"
        )


def check_box(item: Mapping[str, Any], position: int, where: str) -> None:
    """Require a `bbox` of four finite numbers."""
    box = item.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        raise ValueError(
            f"{where}: entry {position} must have a bbox of four finite numbers "
            f"(left, top, width, height), got {box!r}"
        )


def check_number(value: Any, key: str, position: int, where: str) -> None:
    """Require a finite number."""
    if not _is_finite(value):
        raise ValueError(f"{where}: entry {position} must have a finite {key}, got {value!r}")


def kind_of(value: Any) -> str:
    """Describe the type of a JSON value, for errors."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _box_area(annotation: Mapping[str, Any]) -> Any:
    return annotation["bbox"][2] * annotation["bbox"][3]


def _size(image: Mapping[str, Any]) -> Size:
    """Return (height, width); scoring does not need them, so invalid values become (0, 0)."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) else (0, 0)
