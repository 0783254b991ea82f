"""The rules that COCO annotations and results must meet: one table, and the check of a file.

A value that training or pycocotools would read in another way than it is meant, or that would take
an object out of the score without a word, is an error.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deformable_detr.coco_json.reading import is_integer, is_number, kind_of
from deformable_detr.messages import in_brief, listed, shown

Use = Literal["training", "scoring"]
Entry = Mapping[str, Any]
_Describe = Callable[[Entry], str]

MAX_PIXELS = 10**9  # a side or a coordinate; float64 holds products of two
MAX_AREA = 10**10  # pycocotools leaves larger objects out of every size range
REQUIRED = "required"
SECTIONS = ("images", "annotations", "categories")
_MISSING = object()


@dataclass(frozen=True)
class Rule:
    """Rule of the value of a key.

    Attributes:
        section: `images`, `categories` or `annotations`; `results` for the entries of a results
            file.
        key: key of an entry.
        must: completes "KEY must be".
        holds: returns whether a value meets the rule.
        training: `REQUIRED`, or the meaning of a missing key, if the images are read too: for
            training, and for the evaluation of a model.
        scoring: the same if a results file is scored, without images.
    """

    section: str
    key: str
    must: str
    holds: Callable[[Any], bool]
    training: str = REQUIRED
    scoring: str = REQUIRED


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_PIXELS


def _is_area(value: Any) -> bool:
    return is_number(value, MAX_AREA) and value >= 0


def _is_box(value: Any) -> bool:
    if type(value) is not list or len(value) != 4:
        return False
    for side in value:
        if not is_number(side, MAX_PIXELS):
            return False
    width, height = value[2:]
    return width <= 0 or height <= 0 or width * height <= MAX_AREA


def _is_found_box(value: Any) -> bool:
    return _is_box(value) and value[2] >= 0 and value[3] >= 0


_BOX = "four finite numbers [x, y, width, height] of at most 1e9, width x height at most 1e10"

RULES = (
    Rule("images", "id", "an integer of 64 bits, unique", is_integer),
    Rule(
        "images",
        "file_name",
        "a path below the image folder",
        lambda value: isinstance(value, str) and bool(value),
        scoring="unknown",
    ),
    *(
        Rule(
            "images",
            key,
            "an integer of at least 1 and at most 1e9",
            _is_side,
            scoring="unknown",
        )
        for key in ("height", "width")
    ),
    Rule("categories", "id", "an integer of 64 bits, unique", is_integer),
    Rule(
        "annotations",
        "id",
        "an integer of 64 bits, unique",
        is_integer,
        scoring="not used",
    ),
    Rule("annotations", "image_id", "the id of an image", is_integer),
    Rule("annotations", "category_id", "the id of a category", is_integer),
    Rule("annotations", "bbox", _BOX, _is_box),
    Rule(
        "annotations",
        "area",
        "a finite number of at least 0 and at most 1e10",
        _is_area,
        training="area of the box",
        scoring="area of the box",
    ),
    Rule(
        "annotations",
        "iscrowd",
        "0 or 1, an integer",
        lambda value: type(value) is int and value in (0, 1),
        training="0",
        scoring="0",
    ),
    Rule(
        "annotations",
        "ignore",
        "0, since COCO's evaluation does not read it (iscrowd: 1 marks a region to ignore)",
        lambda value: type(value) in (bool, int, float) and value == 0,
        training="0",
        scoring="0",
    ),
    Rule("results", "image_id", "the id of an image", is_integer, scoring="file_name decides"),
    Rule("results", "category_id", "the id of a category", is_integer),
    Rule("results", "bbox", f"{_BOX}, width and height at least 0", _is_found_box),
    Rule("results", "score", "a finite number", is_number),
    Rule(
        "results",
        "file_name",
        "the path of the image",
        lambda value: isinstance(value, str) and bool(value),
        scoring="image_id decides",
    ),
)


def check_annotations(record: Any, file: Path, use: Use) -> None:
    """Require the content of an annotation file to meet all rules.

    Args:
        record: the parsed file.
        file: its path, for errors.
        use: decides which keys may be missing; scoring also accepts a file without `annotations`.

    Raises:
        ValueError: names file, entry, key and value.
    """
    try:
        _require_sections(record, use)
        for section in ("images", "categories"):
            _check_entries(record[section], section, use, _show_id)
            _require_unique(record[section], section, _show_id)
        names = {one["id"]: one.get("file_name", str(one["id"])) for one in record["images"]}
        annotations = record.get("annotations", [])
        describe = functools.partial(_place, names)
        _check_entries(annotations, "annotations", use, describe)
        _require_unique(annotations, "annotations", describe)
        _require_known(annotations, record, describe)
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error


def check_results(results: Any, file: Path) -> None:
    """Require the content of a results file to be a list of results that meet the rules.

    Raises:
        ValueError: names file, entry, key and value.
    """
    if not isinstance(results, list):
        raise ValueError(
            f"results file {shown(file)} must hold a list of results, got {kind_of(results)}"
        )
    try:
        _require_objects(results, "results")
        _check_entries(results, "results", "scoring", _show_image)
        for position, entry in enumerate(results):
            if "image_id" not in entry and "file_name" not in entry:
                raise ValueError(f"results[{position}] must have an image_id, got nothing")
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error


def require_known(used: Iterable[int], known: Iterable[int], key: str, where: str) -> None:
    """Require the ids at `key` of a results file to be known to the annotation file."""
    unknown = sorted(set(used) - set(known))
    if unknown:
        raise ValueError(
            f"{where} must use the {key} of the annotation file, got unknown {listed(unknown)}"
        )


def _require_sections(record: Any, use: Use) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"the file must hold one JSON object, got {kind_of(record)}")
    for section in SECTIONS:
        if section == "annotations" and use == "scoring" and section not in record:
            continue
        entries = record.get(section)
        if not isinstance(entries, list):
            raise ValueError(
                f"{section} must be a list, got {kind_of(entries)}; a COCO file for detection "
                f"has {', '.join(SECTIONS)}"
            )
        _require_objects(entries, section)
    for section, one in (("images", "image"), ("categories", "category")):
        if not record[section]:
            raise ValueError(f"{section} must hold at least one {one}, got none")


def _require_objects(entries: Sequence[Any], section: str) -> None:
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{section}[{position}] must be an object, got {in_brief(entry)}")


def _check_entries(entries: Sequence[Entry], section: str, use: Use, describe: _Describe) -> None:
    """Check all entries against the rules of a section; `describe` identifies one in errors."""
    for rule in RULES:
        if rule.section != section:
            continue
        is_required = getattr(rule, use) == REQUIRED
        key, holds = rule.key, rule.holds
        for position, entry in enumerate(entries):
            value = entry.get(key, _MISSING)
            if (value is _MISSING and is_required) or (value is not _MISSING and not holds(value)):
                got = "nothing" if value is _MISSING else in_brief(value)
                raise ValueError(
                    f"{section}[{position}] ({describe(entry)}): "
                    f"{key} must be {rule.must}, got {got}"
                )


def _require_unique(entries: Sequence[Entry], section: str, describe: _Describe) -> None:
    """Require the ids of a section to be unique; entries without one are passed over."""
    first: dict[int, int] = {}
    for position, entry in enumerate(entries):
        twin = first.setdefault(entry["id"], position) if "id" in entry else position
        if twin != position:
            raise ValueError(
                f"{section}[{position}] ({describe(entry)}): "
                f"id must be unique, got the id of {section}[{twin}]"
            )


def _require_known(annotations: Sequence[Entry], record: Entry, describe: _Describe) -> None:
    image_ids = {one["id"] for one in record["images"]}
    names = {
        one["id"]: one.get("name", one["id"])
        for one in record["categories"]
        if one.get("is_category", True) is not False
    }
    for position, entry in enumerate(annotations):
        if entry["image_id"] not in image_ids:
            must = f"image_id must be the id of an image, got {entry['image_id']}"
        elif entry["category_id"] not in names:
            must = f"category_id must be one of {_categories(names)}, got {entry['category_id']}"
        else:
            continue
        raise ValueError(f"annotations[{position}] ({describe(entry)}): {must}")


def _categories(names: Mapping[int, Any]) -> str:
    pairs = [f"{category_id}: {name}" for category_id, name in sorted(names.items())]
    return "{" + listed(pairs) + "}"


def _show_id(entry: Entry) -> str:
    return f"id {in_brief(entry.get('id'))}"


def _show_image(entry: Entry) -> str:
    return f"image_id {in_brief(entry.get('image_id'))}"


def _place(names: Mapping[int, str], entry: Entry) -> str:
    """Return id and image of an annotation, of which any key may be wrong."""
    image_id = entry.get("image_id")
    name = "unknown"
    if isinstance(image_id, int):
        name = names.get(image_id, name)
    return f"{_show_id(entry)}, image {name}"
