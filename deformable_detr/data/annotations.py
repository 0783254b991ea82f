"""Read and validate COCO annotation files."""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deformable_detr.ground_truth import GroundTruth
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Size

_LOGGER = logging.getLogger(__name__)
_SECTIONS = ("images", "annotations", "categories")
_MAX_COORDINATE = 1e9  # far beyond any image; also rejects NaN and infinity

_Entry = Mapping[str, Any]


class ImageRecord(NamedTuple):
    """Entry of `images`; `size` is (height, width) as annotated."""

    image_id: int
    file_name: str
    size: Size


@dataclass(frozen=True)
class Objects:
    """Annotated objects, T of them, as columns.

    Attributes:
        boxes_xyxy: (T, 4) float32 pixels, clipped to the image.
        labels: (T,) int64 in 0..K-1.
        area: (T,) float32 square pixels: `area` of the file if given, else the area of the box.
        annotation_ids: ids of the T annotations.
        segmentations: T polygons or run-length encodings, unchanged from the file, or None.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    area: Tensor
    annotation_ids: tuple[int, ...]
    segmentations: tuple[Any, ...]


@dataclass(frozen=True)
class Annotations:
    """Content of a COCO annotation file that passed all checks.

    Attributes:
        images: images sorted by id, including those without objects.
        label_space: categories of the file and their labels.
        objects: objects grouped by image, in file order within each image; no crowds.
        offsets: the objects of images[i] are offsets[i] up to offsets[i + 1].
        num_dropped: number of dropped annotations per reason: "crowd" (iscrowd is 1),
            "degenerate" (no width or no height), "outside" (entirely outside the image).
        ground_truth: all annotations, unchanged from the file, to score detections against.
    """

    images: tuple[ImageRecord, ...]
    label_space: LabelSpace
    objects: Objects
    offsets: tuple[int, ...]
    num_dropped: Mapping[str, int]
    ground_truth: GroundTruth


class _Object(NamedTuple):
    image: int  # position in Annotations.images
    box_xyxy: tuple[float, float, float, float]
    label: int
    area: float
    annotation_id: int
    segmentation: Any


def _parse_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"must be JSON in UTF-8, got {error}; is the file whole?") from error


def read_annotations(
    file: Path, *, label_space: LabelSpace | None = None, raw_labels: bool = False
) -> Annotations:
    """Read and check a COCO annotation file.

    Args:
        file: path of the JSON file.
        label_space: label space to use; the file must have the same categories.
        raw_labels: if no label space is given, use category ids as labels, as the official code.

    Raises:
        FileNotFoundError: `file` does not exist.
        ValueError: the content is invalid; the message names the file and the entry.
    """
    if not file.is_file():
        raise FileNotFoundError(f"annotations must be a COCO JSON file, got {file}: no such file")
    try:
        record = _parse_json(file.read_bytes())
        _require_sections(record)
        images = _parse_images(record["images"])
        label_space = _choose_labels(record["categories"], label_space, raw_labels=raw_labels)
        objects, num_dropped = _parse_objects(record["annotations"], images, label_space)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    for reason in ("degenerate", "outside"):
        if num_dropped[reason]:
            _LOGGER.warning("%s: %d %s boxes left out", file, num_dropped[reason], reason)

    objects.sort(key=lambda entry: entry.image)  # stable: keeps file order within each image
    per_image = Counter(entry.image for entry in objects)
    return Annotations(
        images=images,
        label_space=label_space,
        objects=Objects(
            boxes_xyxy=torch.tensor(
                [entry.box_xyxy for entry in objects], dtype=torch.float32
            ).view(-1, 4),
            labels=torch.tensor([entry.label for entry in objects], dtype=torch.int64),
            area=torch.tensor([entry.area for entry in objects], dtype=torch.float32),
            annotation_ids=tuple(entry.annotation_id for entry in objects),
            segmentations=tuple(entry.segmentation for entry in objects),
        ),
        offsets=(0, *itertools.accumulate(per_image[i] for i in range(len(images)))),
        num_dropped=num_dropped,
        ground_truth=GroundTruth.of(file, record),
    )


def _choose_labels(
    categories: Sequence[_Entry], label_space: LabelSpace | None, *, raw_labels: bool
) -> LabelSpace:
    found = LabelSpace.from_categories(categories)
    if label_space is None:
        return found.with_raw_labels() if raw_labels else found
    label_space.contiguous().require_same(found, this="the label space in use", that="the file")
    return label_space


def _require_sections(record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"the file must hold one JSON object, got a {type(record).__name__}")
    for section in _SECTIONS:
        entries = record.get(section)
        if not isinstance(entries, list):
            found = "nothing" if entries is None else f"a {type(entries).__name__}"
            raise ValueError(
                f"{section} must be a list, got {found}; a COCO file for detection "
                f"has {', '.join(_SECTIONS)}"
            )
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(f"{section}[{position}] must be an object, got {entry!r}")
    if not record["images"]:
        raise ValueError("images must hold at least one image, got none")


def _parse_images(entries: Sequence[_Entry]) -> tuple[ImageRecord, ...]:
    images: dict[int, ImageRecord] = {}
    for index, entry in enumerate(entries):
        try:
            image = ImageRecord(
                _integer(entry, "id"),
                _file_name(entry),
                (_integer(entry, "height", minimum=1), _integer(entry, "width", minimum=1)),
            )
            if image.image_id in images:
                twin = images[image.image_id].file_name
                raise ValueError(f"id must be unique, got the id of {twin} again")
        except ValueError as error:
            raise ValueError(f"images[{index}] (id {entry.get('id')!r}): {error}") from error
        images[image.image_id] = image
    return tuple(images[image_id] for image_id in sorted(images))


def _parse_objects(
    entries: Sequence[_Entry], images: Sequence[ImageRecord], label_space: LabelSpace
) -> tuple[list[_Object], dict[str, int]]:
    """Return the objects to learn and the number of dropped annotations per reason."""
    positions = {image.image_id: position for position, image in enumerate(images)}
    seen: set[int] = set()
    objects = []
    num_dropped = {"crowd": 0, "degenerate": 0, "outside": 0}
    for index, entry in enumerate(entries):
        try:
            annotation_id = _integer(entry, "id")
            if annotation_id in seen:
                raise ValueError("id must be unique, got a duplicate")
            seen.add(annotation_id)
            position = positions.get(_integer(entry, "image_id"))
            if position is None:
                raise ValueError(f"image_id must be the id of an image, got {entry['image_id']}")
            parsed = _parse_object(entry, position, images[position].size, label_space)
        except ValueError as error:
            where = f"id {entry.get('id')!r}, image {_name_of(entry, images)}"
            raise ValueError(f"annotations[{index}] ({where}): {error}") from error
        if isinstance(parsed, str):
            num_dropped[parsed] += 1
        else:
            objects.append(parsed)
    return objects, num_dropped


def _name_of(entry: _Entry, images: Sequence[ImageRecord]) -> str:
    """Return the file name of an annotation's image, or "unknown"."""
    image_id = entry.get("image_id")
    return next((image.file_name for image in images if image.image_id == image_id), "unknown")


def _parse_object(
    entry: _Entry, position: int, size: Size, label_space: LabelSpace
) -> _Object | str:
    """Return the object, or the reason to drop it."""
    category_id = _integer(entry, "category_id")
    if category_id not in label_space:
        raise ValueError(f"category_id must be one of {label_space.describe()}, got {category_id}")
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(f"bbox must be four finite numbers [x, y, width, height], got {box!r}")
    x, y, width, height = box
    area = entry.get("area", width * height)
    if not _is_number(area):
        raise ValueError(f"area must be a finite number, got {area!r}")
    is_crowd = entry.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise ValueError(f"iscrowd must be 0 or 1, got {is_crowd!r}")
    if is_crowd:
        return "crowd"
    if width <= 0 or height <= 0:
        return "degenerate"
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size[1]), min(y + height, size[0])
    if right <= left or bottom <= top:
        return "outside"
    return _Object(
        image=position,
        box_xyxy=(left, top, right, bottom),
        label=label_space.label(category_id),
        area=area,
        annotation_id=entry["id"],
        segmentation=entry.get("segmentation"),
    )


def _integer(entry: _Entry, key: str, *, minimum: int | None = None) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be an integer, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{key} must be at least {minimum}, got {value}")
    return value


def _file_name(entry: _Entry) -> str:
    value = entry.get("file_name")
    if not isinstance(value, str) or not value:
        raise ValueError(f"file_name must be a path below the image folder, got {value!r}")
    return value


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_MAX_COORDINATE < value < _MAX_COORDINATE
    )
