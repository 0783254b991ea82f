"""The rules that COCO annotations and results must meet: one table, and the check of a file.

A value that training or pycocotools would read in another way than it is meant, or that would take
an object out of the score without a word, is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deformable_detr.coco_json.file_names import is_below_folder
from deformable_detr.coco_json.reading import is_integer, is_number, kind_of
from deformable_detr.messages import in_brief, listed, shown

Use = Literal["training", "scoring"]
Entry = Mapping[str, Any]

MAX_PIXELS = 10**9  # a side or a coordinate; float64 holds products of two
MAX_AREA = 10**10  # pycocotools leaves larger objects out of every size range
REQUIRED = "required"
SECTIONS = ("images", "annotations", "categories")
_SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
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

    @property
    def kind(self) -> str:
        """Identifier of a breach of this rule, as in "image-file-name"."""
        return f"{_SINGULAR.get(self.section, 'result')}-{self.key.replace('_', '-')}"


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
        "a path below the image folder, relative and without ..",
        is_below_folder,
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


@dataclass(frozen=True)
class Problem:
    """Breach of a rule in an annotation file.

    Attributes:
        kind: short identifier of the kind, such as "annotation-bbox" or "unknown-image".
        message: place, rule and value in one line, without the file.
        section: section of the entry; "" for the file as a whole.
        position: index in the section; None for the section as a whole.
        entry_id: `id` of the entry, of any type; None if there is none.
        image: `file_name` of the image, or "".
        key: key of the entry, or "".
        value: value at the key; None if there is none.
    """

    kind: str
    message: str
    section: str = ""
    position: int | None = None
    entry_id: Any = None
    image: str = ""
    key: str = ""
    value: Any = None


def check_annotations(record: Any, file: Path, use: Use) -> None:
    """Require the content of an annotation file to meet all rules.

    Args:
        record: the parsed file.
        file: its path, for errors.
        use: decides which keys may be missing; scoring also accepts a file without `annotations`.

    Raises:
        ValueError: names file, entry, key and value of the first problem.
    """
    for problem in find_problems(record, use):
        raise ValueError(f"{shown(file)}: {problem.message}")


def find_problems(record: Any, use: Use) -> Iterator[Problem]:
    """Find every breach of a rule in the content of an annotation file.

    Args:
        record: the parsed file.
        use: as for `check_annotations`.

    Yields:
        The problems by section and rule, in the order of the entries. Entries that are no objects
        are passed over after their own problem.
    """
    if not isinstance(record, dict):
        message = f"the file must hold one JSON object, got {kind_of(record)}"
        yield Problem("file-not-an-object", message)
        return
    yield from _find_wrong_sections(record, use)
    sections = {name: _Section.of(record, name) for name in SECTIONS}
    for name in ("images", "categories"):
        yield from _find_broken_rules(sections[name], use)
        yield from _find_repeated_ids(sections[name])
    images = {
        entry["id"]: entry.get("file_name", str(entry["id"]))
        for entry in sections["images"].entries
        if is_integer(entry.get("id"))
    }
    annotations = replace(sections["annotations"], image_names=images)
    yield from _find_broken_rules(annotations, use)
    yield from _find_repeated_ids(annotations)
    yield from _find_unknown_ids(annotations, sections["categories"].entries)


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
        section = _Section("results", tuple(range(len(results))), results)
        _require_none(_find_other_entries("results", results))
        _require_none(_find_broken_rules(section, "scoring"))
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


def _require_none(problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise ValueError(problem.message)


@dataclass(frozen=True)
class _Section:
    """Entries of a section that are objects.

    Attributes:
        name: name of the section.
        positions: their indices in the file.
        entries: the entries.
        image_names: of annotations, names of the images by id.
    """

    name: str
    positions: Sequence[int]
    entries: Sequence[Entry]
    image_names: Mapping[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Entry, name: str) -> "_Section":
        found = record.get(name)
        entries = found if isinstance(found, list) else []
        positions = [place for place, entry in enumerate(entries) if isinstance(entry, dict)]
        return cls(name, positions, [entries[place] for place in positions])

    def problem(self, kind: str, index: int, key: str, must: str) -> Problem:
        """Return a problem of the entry at an index of `entries`; `must` completes "KEY must"."""
        position, entry = self.positions[index], self.entries[index]
        image = self._image_name(entry)
        described = f"{_show_id(entry)}, image {shown(image)}"
        if self.name == "results":
            described = _show_image(entry)
        elif self.name != "annotations":
            described = _show_id(entry)
        return Problem(
            kind,
            f"{self.name}[{position}] ({described}): {key} must {must}",
            self.name,
            position,
            entry.get("id"),
            image if isinstance(image, str) else "",
            key,
            entry.get(key),
        )

    def _image_name(self, entry: Entry) -> Any:
        if self.name != "annotations":
            return entry.get("file_name", "") if self.name == "images" else ""
        image_id: Any = entry.get("image_id")
        return self.image_names.get(image_id, "unknown") if is_integer(image_id) else "unknown"


def _find_wrong_sections(record: Entry, use: Use) -> Iterator[Problem]:
    for section in SECTIONS:
        if section == "annotations" and use == "scoring" and section not in record:
            continue
        entries = record.get(section)
        if isinstance(entries, list):
            yield from _find_other_entries(section, entries)
            continue
        message = (
            f"{section} must be a list, got {kind_of(entries)}; a COCO file for detection "
            f"has {', '.join(SECTIONS)}"
        )
        yield Problem("section-missing", message, section)
    for section, one in (("images", "image"), ("categories", "category")):
        if record.get(section) == []:
            message = f"{section} must hold at least one {one}, got none"
            yield Problem("section-empty", message, section)


def _find_other_entries(section: str, entries: Sequence[Any]) -> Iterator[Problem]:
    """Find entries that are no objects."""
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            message = f"{section}[{position}] must be an object, got {in_brief(entry)}"
            yield Problem("entry-not-an-object", message, section, position, value=entry)


def _find_broken_rules(section: _Section, use: Use) -> Iterator[Problem]:
    for rule in RULES:
        if rule.section != section.name:
            continue
        is_required = getattr(rule, use) == REQUIRED
        key, holds = rule.key, rule.holds
        for index, entry in enumerate(section.entries):
            value = entry.get(key, _MISSING)
            if (value is _MISSING and is_required) or (value is not _MISSING and not holds(value)):
                got = "nothing" if value is _MISSING else in_brief(value)
                yield section.problem(rule.kind, index, key, f"be {rule.must}, got {got}")


def _find_repeated_ids(section: _Section) -> Iterator[Problem]:
    """Find ids of earlier entries; entries without an id, or with no integer, are passed over."""
    first: dict[int, int] = {}
    kind = f"{_SINGULAR[section.name]}-id-twice"
    for index, entry in enumerate(section.entries):
        if not is_integer(entry.get("id")):
            continue
        twin = first.setdefault(entry["id"], index)
        if twin != index:
            where = f"{section.name}[{section.positions[twin]}]"
            yield section.problem(kind, index, "id", f"be unique, got the id of {where}")


def _find_unknown_ids(annotations: _Section, categories: Sequence[Entry]) -> Iterator[Problem]:
    names = {
        one["id"]: one.get("name", one["id"])
        for one in categories
        if is_integer(one.get("id")) and one.get("is_category", True) is not False
    }
    images, known = annotations.image_names, _categories(names)
    for index, entry in enumerate(annotations.entries):
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if is_integer(image_id) and image_id not in images:
            must = f"be the id of an image, got {image_id}"
            yield annotations.problem("unknown-image", index, "image_id", must)
        elif is_integer(category_id) and category_id not in names:
            must = f"be one of {known}, got {category_id}"
            yield annotations.problem("unknown-category", index, "category_id", must)


def _categories(names: Mapping[int, Any]) -> str:
    pairs = [f"{category_id}: {name}" for category_id, name in sorted(names.items())]
    return "{" + listed(pairs) + "}"


def _show_id(entry: Entry) -> str:
    return f"id {in_brief(entry.get('id'))}"


def _show_image(entry: Entry) -> str:
    return f"image_id {in_brief(entry.get('image_id'))}"
