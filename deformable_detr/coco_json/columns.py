"""Content of annotation files as columns, read without making objects of what is not used.

msgspec decodes a sound file in a fraction of the time and the memory that `json` takes. Any other
file is parsed by `json` and checked by the table of rules, which words the error.
"""

import codecs
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Struct, UnsetType

from deformable_detr.coco_json.reading import parse_json, read_content
from deformable_detr.coco_json.rules import (
    MAX_AREA,
    MAX_PIXELS,
    REQUIRED,
    RULES,
    Use,
    check_annotations,
)
from deformable_detr.packed import PackedTexts

_WHAT = "annotation file"
_CHUNK_BYTES = 1 << 20
_SMALLEST_INTEGER = -(2**63) + 1  # that `coco_json.reading.is_integer` accepts
_Integers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class _Box(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    x: float
    y: float
    width: float
    height: float


class _Image(Struct, gc=False):
    id: int | UnsetType = UNSET
    file_name: str | UnsetType = UNSET
    height: int | UnsetType = UNSET
    width: int | UnsetType = UNSET


class _Category(Struct, gc=False):
    id: int | UnsetType = UNSET
    name: Any = UNSET
    is_category: Any = True


class _Annotation(Struct, gc=False):
    id: int | UnsetType = UNSET
    image_id: int | UnsetType = UNSET
    category_id: int | UnsetType = UNSET
    bbox: _Box | UnsetType = UNSET
    area: float | UnsetType = UNSET
    iscrowd: int = 0
    ignore: bool | int | float = 0


class _Content(Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation] | UnsetType = UNSET


@dataclass(frozen=True)
class AnnotationColumns:
    """Content of an annotation file that meets the rules: I images, K categories and T objects.

    Attributes:
        image_ids: (I,) int64.
        file_names: I names, "" if not in the file.
        image_sizes: (I, 2) int64 height and width in pixels, 0 if not in the file.
        categories: K entries with `id`, `name` and `is_category`, sorted by id.
        images: (T,) int64 index into `image_ids` per object.
        labels: (T,) int64 index into `categories` per object.
        boxes_xywh: (T, 4) float64 pixels.
        area: (T,) float64 square pixels; area of the box if not in the file.
        is_crowd: (T,) bool.
    """

    image_ids: _Integers
    file_names: PackedTexts
    image_sizes: _Integers
    categories: Sequence[Mapping[str, Any]]
    images: _Integers
    labels: _Integers
    boxes_xywh: _Floats
    area: _Floats
    is_crowd: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "AnnotationColumns":
        """Return the columns of a parsed file that has been checked."""
        return _columns(msgspec.convert(record, _Content))


def read_columns(file: Path, use: Use) -> AnnotationColumns:
    """Read and check a COCO annotation file.

    In memory, the bytes of the file and about 300 bytes per object are needed meanwhile; the
    columns take 57 bytes per object. A file that `json` must parse takes about six times its size.

    Args:
        file: path of the JSON file.
        use: decides which keys may be missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the content breaks a rule; the message names file, entry, key and value.
    """
    content = read_content(file, _WHAT)
    columns = sound_columns(content, use)
    if columns is None:
        record = parse_json(content, file, _WHAT)
        check_annotations(record, file, use)
        columns = AnnotationColumns.of(record)
    return columns


def sound_columns(content: bytes, use: Use) -> AnnotationColumns | None:
    """Return the columns of a file if it surely meets the rules, else None."""
    coding = json.detect_encoding(content)
    if coding not in ("utf-8", "utf-8-sig") or not _is_utf8(content):
        return None
    start = len(codecs.BOM_UTF8) if coding == "utf-8-sig" else 0
    try:
        found = msgspec.json.decode(memoryview(content)[start:], type=_Content)
        if _lacks_required(found, use):
            return None
        columns = _columns(found)
        return columns if _is_sound(found, columns) else None
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError, AttributeError):
        return None  # not JSON, of another type, beyond int64, or a rule of a key not read here


def _is_utf8(content: bytes) -> bool:
    """Return whether all of the file is UTF-8; msgspec does not look into what it skips."""
    if content.isascii():
        return True
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(content)
    try:
        for start in range(0, len(content), _CHUNK_BYTES):
            decoder.decode(view[start : start + _CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _lacks_required(content: _Content, use: Use) -> bool:
    """Return whether a part or a key is missing that has no default for this use."""
    if not content.images or not content.categories:
        return True
    if content.annotations is UNSET and use != "scoring":
        return True
    return any(
        UNSET in map(operator.attrgetter(rule.key), _entries(content, rule.section))
        for rule in RULES
        if rule.section != "results" and getattr(rule, use) == REQUIRED
    )


def _entries(content: _Content, section: str) -> Sequence[Any]:
    entries: Sequence[Any] | UnsetType = getattr(content, section)
    return () if entries is UNSET else entries


def _columns(content: _Content) -> AnnotationColumns:
    """Return the columns; the index of an unknown id is -1.

    Raises:
        OverflowError: an integer does not fit int64.
    """
    images, objects = content.images, _entries(content, "annotations")
    categories = sorted(content.categories, key=operator.attrgetter("id"))
    image_ids = _integers([one.id for one in images])
    boxes = _boxes(objects)
    width, height = boxes.T[2:]
    area = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    is_given = np.array([one.area is not UNSET for one in objects], dtype=np.bool_)
    area[is_given] = [one.area for one in objects if one.area is not UNSET]
    return AnnotationColumns(
        image_ids,
        PackedTexts("" if one.file_name is UNSET else one.file_name for one in images),
        np.stack(
            [
                _integers([one.height for one in images]),
                _integers([one.width for one in images]),
            ],
            axis=1,
        ),
        [_as_json(one) for one in categories],
        _places([one.image_id for one in objects], image_ids),
        _places([one.category_id for one in objects], _integers([one.id for one in categories])),
        boxes,
        area,
        np.array([one.iscrowd for one in objects], dtype=np.bool_),
    )


def _as_json(category: _Category) -> dict[str, Any]:
    name = category.id if category.name is UNSET else category.name
    return {"id": category.id, "name": name, "is_category": category.is_category}


def _integers(values: Sequence[int | UnsetType]) -> _Integers:
    """Return the values as an array, 0 for those that are missing."""
    return np.array([0 if value is UNSET else value for value in values], dtype=np.int64)


def _boxes(objects: Sequence[_Annotation]) -> _Floats:
    boxes: list[Any] = [one.bbox for one in objects]
    columns = (
        [one.x for one in boxes],
        [one.y for one in boxes],
        [one.width for one in boxes],
        [one.height for one in boxes],
    )
    return np.stack([np.array(column, dtype=np.float64) for column in columns], axis=1)


def _places(ids: Sequence[int | UnsetType], known: _Integers) -> _Integers:
    """Return the index of each id in `known`, -1 if it is not there."""
    order = np.argsort(known, kind="stable")
    wanted = _integers(ids)
    places = order[np.searchsorted(known[order], wanted).clip(max=len(known) - 1)]
    places[known[places] != wanted] = -1
    return places


def _is_sound(content: _Content, columns: AnnotationColumns) -> bool:
    """Return whether all rules are met, given that no required value is missing.

    A rule that has no check of whole columns here is not met: the file is then read by `json`.
    """
    return all(isinstance(one.name, str | UnsetType) for one in content.categories) and all(
        (check := _CHECKS.get((rule.section, rule.key))) is not None and check(content, columns)
        for rule in RULES
        if rule.section != "results"
    )


def _are_unique(entries: Sequence[Any]) -> bool:
    ids = np.sort(np.array([one.id for one in entries if one.id is not UNSET], dtype=np.int64))
    return not ids.size or bool(ids[0] >= _SMALLEST_INTEGER and (ids[1:] > ids[:-1]).all())


def _are_sides(values: Sequence[int | UnsetType]) -> bool:
    given = np.array([value for value in values if value is not UNSET], dtype=np.int64)
    return bool(((given >= 1) & (given <= MAX_PIXELS)).all())


def _are_paths(content: _Content) -> bool:
    [rule] = [rule for rule in RULES if (rule.section, rule.key) == ("images", "file_name")]
    return all(one.file_name is UNSET or rule.holds(one.file_name) for one in content.images)


def _are_categories(columns: AnnotationColumns) -> bool:
    """Return whether all objects are of known categories that are not marked as unused."""
    is_used = np.array([one["is_category"] is not False for one in columns.categories])
    return bool((columns.labels >= 0).all() and is_used[columns.labels].all())


def _are_boxes(columns: AnnotationColumns) -> bool:
    boxes = columns.boxes_xywh
    width, height = boxes.T[2:].clip(min=0)
    return bool((np.abs(boxes) <= MAX_PIXELS).all() and (width * height <= MAX_AREA).all())


_CHECKS: Mapping[tuple[str, str], Callable[[_Content, AnnotationColumns], bool]] = {
    ("images", "id"): lambda content, _: _are_unique(content.images),
    ("images", "file_name"): lambda content, _: _are_paths(content),
    ("images", "height"): lambda content, _: _are_sides([one.height for one in content.images]),
    ("images", "width"): lambda content, _: _are_sides([one.width for one in content.images]),
    ("categories", "id"): lambda content, _: _are_unique(content.categories),
    ("annotations", "id"): lambda content, _: _are_unique(_entries(content, "annotations")),
    ("annotations", "image_id"): lambda _, columns: bool((columns.images >= 0).all()),
    ("annotations", "category_id"): lambda _, columns: _are_categories(columns),
    ("annotations", "bbox"): lambda _, columns: _are_boxes(columns),
    ("annotations", "area"): lambda _, columns: bool(
        ((columns.area >= 0) & (columns.area <= MAX_AREA)).all()
    ),
    ("annotations", "iscrowd"): lambda content, _: all(
        one.iscrowd in (0, 1) for one in _entries(content, "annotations")
    ),
    ("annotations", "ignore"): lambda content, _: (
        not any(one.ignore for one in _entries(content, "annotations"))
    ),
}
