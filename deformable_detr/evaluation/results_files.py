"""Reads annotation and result files for scoring, and says what is wrong with them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deformable_detr.labels import LabelSpace

SHOWN = 5  # offending values an error lists
_IMAGE = ("id", "width", "height")  # what is kept of an image; scoring needs its id alone


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Read what scoring needs of a COCO annotation file.

    Keys that scoring does not need, such as `info`, may be missing, as may `iscrowd` (0) and
    `area` (that of the box). Annotations are numbered anew from 1: pycocotools takes one whose
    id is 0 for "not matched", and loses all but one of those that share an id.

    Returns:
        `images`, `categories` and `annotations` as pycocotools wants them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not COCO JSON, or an annotation cannot be scored.
    """
    content = _read_json(path, "annotation file")
    if not isinstance(content, dict):
        raise ValueError(f"annotation file {path} must hold an object, got {_kind(content)}")
    for key in ("images", "categories"):
        _check_objects(content.get(key), ("id",), f"{key} of {path}")
    images = [{key: image[key] for key in _IMAGE if key in image} for image in content["images"]]
    categories = LabelSpace.from_categories(content["categories"]).to_json()
    annotations = content.get("annotations", [])
    where = f"annotations of {path}"
    _check_objects(annotations, ("image_id", "category_id"), where)
    _check_known(annotations, "image_id", images, where)
    _check_known(annotations, "category_id", categories, where)
    return {
        "images": images,
        "categories": categories,
        "annotations": [
            _renumbered(annotation, position, where)
            for position, annotation in enumerate(annotations)
        ],
    }


def read_results(path: Path, ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read a COCO result file for the images and categories of `ground_truth`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a list of COCO box results, or names an image or a category
            that `ground_truth` does not have.
    """
    results = _read_json(path, "results file")
    if not isinstance(results, list):
        raise ValueError(f"results file {path} must hold a list of results, got {_kind(results)}")
    where = f"results of {path}"
    _check_objects(results, ("image_id", "category_id"), where)
    _check_known(results, "image_id", ground_truth["images"], where)
    _check_known(results, "category_id", ground_truth["categories"], where)
    for position, result in enumerate(results):
        _check_box(result, position, where)
        _check_number(result.get("score"), "score", position, where)
    return results


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_bytes())  # UTF-8 with or without a mark at its beginning
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} {path} must exist, found nothing there") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {path} must be JSON, got {error}") from error


def _renumbered(annotation: Mapping[str, Any], position: int, where: str) -> dict[str, Any]:
    _check_box(annotation, position, where)
    box = annotation["bbox"]
    area = annotation.get("area", box[2] * box[3])
    _check_number(area, "area", position, where)
    return {
        "id": position + 1,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": area,
        "iscrowd": int(bool(annotation.get("iscrowd"))),
    }


def _check_objects(items: Any, ids: Sequence[str], where: str) -> None:
    """A list of objects is wanted, each with these keys, integers all."""
    if not isinstance(items, list):
        raise ValueError(f"{where} must be a list, got {_kind(items)}")
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{where}: entry {position} must be an object, got {_kind(item)}")
        for key in ids:
            if type(item.get(key)) is not int:
                raise ValueError(
                    f"{where}: entry {position} must have an integer {key}, got {item.get(key)!r}"
                )


def _check_known(
    items: Iterable[Mapping[str, Any]],
    key: str,
    known: Iterable[Mapping[str, Any]],
    where: str,
) -> None:
    unknown = sorted({item[key] for item in items} - {item["id"] for item in known})
    if unknown:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise ValueError(
            f"{where} must use the {key} of the annotation file, "
            f"got unknown {', '.join(map(str, unknown[:SHOWN]))}{more}"
        )


def _check_box(item: Mapping[str, Any], position: int, where: str) -> None:
    box = item.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        raise ValueError(
            f"{where}: entry {position} must have a bbox of four finite numbers "
            f"(left, top, width, height), got {box!r}"
        )


def _check_number(value: Any, key: str, position: int, where: str) -> None:
    if not _is_finite(value):
        raise ValueError(f"{where}: entry {position} must have a finite {key}, got {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
