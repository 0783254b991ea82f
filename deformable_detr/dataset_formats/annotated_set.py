"""AnnotatedSet: the content of a data set of any format, as COCO's three lists."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deformable_detr.coco_json.rules import Problem, find_problems
from deformable_detr.data.found_photos import images_among
from deformable_detr.data.image_headers import read_header
from deformable_detr.files import require_regular_file
from deformable_detr.messages import printable, shown
from deformable_detr.photos import UNREADABLE
from deformable_detr.structures import Size

_MAX_BYTES = 16 << 20  # of a text file
_REASON = 200  # characters of the reason why an image cannot be read


@dataclass(frozen=True)
class Fault:
    """Something in the files of a data set that cannot be read as it is meant.

    Attributes:
        kind: "label-file" or "label-entry".
        place: file, and line or object in it.
        message: what is wrong, and the remedy.
    """

    kind: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass
class AnnotatedSet:
    """Images of one set (training, validation) and their annotations.

    Attributes:
        format: "COCO JSON", "YOLO" or "Pascal VOC".
        images: folder that the file names are relative to.
        record: content of a COCO annotation file: `images`, `annotations` and `categories`.
        places: file, and line or object in it, of each entry by section; empty for COCO JSON, whose
            entries are named by their index.
        faults: what could not be read.
        left_out: files and entries that are left out, by reason.
        notes: what was decided about the format, one line each.
        file: annotation file of COCO JSON, or None.
    """

    format: str
    images: Path
    record: Any
    places: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    file: Path | None = None

    def leave_out(self, reason: str, what: str) -> None:
        """Count something that is left out."""
        self.left_out.setdefault(reason, []).append(what)

    def describe_left_out(self) -> list[str]:
        """Return a line for each reason: a count and an example."""
        return [
            f"left out, {reason}: {len(places):,}, such as {places[0]}"
            for reason, places in self.left_out.items()
        ]

    def place_of(self, problem: Problem) -> str:
        """Return file, and line or object in it, of a breach of a rule; "" if unknown."""
        places = self.places.get(problem.section, [])
        return "" if problem.position is None or not places else places[problem.position]

    def worded(self, problem: Problem) -> str:
        """Return the message of a breach of a rule, with the place in the user's files."""
        place = self.place_of(problem)
        if not place:
            return problem.message
        _, _, what = problem.message.partition("): ")
        return f"{place}: {what or problem.message}"

    def require_sound(self) -> None:
        """Raise a ValueError for the first fault, or for the first breach of a rule."""
        for fault in self.faults:
            raise ValueError(str(fault))
        for problem in find_problems(self.record, "training"):
            place = "" if self.file is None else f"{shown(self.file)}: "
            raise ValueError(f"{place}{self.worded(problem)}")


def read_small_text(file: Path, most_bytes: int = _MAX_BYTES) -> str:
    """Read a text file; errors leave it to the caller to name the file, unless it is no file.

    Raises:
        ValueError: the file is too large, or not in UTF-8.
    """
    require_regular_file(file, "text file")
    if file.stat().st_size > most_bytes:
        raise ValueError(f"must have at most {most_bytes >> 20} MiB of text")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("must be text in UTF-8, got other bytes") from error


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    require_regular_file(file, "text file")  # whose error names it
    try:
        return read_small_text(file).splitlines()
    except ValueError as error:
        raise ValueError(f"{shown(file)}: {error}") from error


def images_below(folder: Path) -> list[Path]:
    """List the image files of a folder and its subfolders, hidden ones excepted, by their path."""
    named = (
        file
        for file in folder.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    return sorted(file for file in images_among(named) if file.is_file())


def upright_size_of(file: Path) -> Size | str:
    """Return (height, width) of an image turned upright, or why it cannot be read."""
    try:
        return read_header(file).upright
    except UNREADABLE as error:
        return printable(str(error) or type(error).__name__)[:_REASON]


def image_entry(image_id: int, name: str, size: Size) -> dict[str, Any]:
    """Return an entry of `images`."""
    return {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}


def annotation_entry(
    annotation_id: int, image_id: int, category_id: int, corners: Sequence[float]
) -> dict[str, Any]:
    """Return an entry of `annotations` for a box with corners (x1, y1, x2, y2) in pixels."""
    left, top, right, bottom = corners
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def category_entries(names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return the entries of `categories`, by their ids."""
    return [{"id": key, "name": name} for key, name in sorted(names.items())]


def require_unique_stems(files: Iterable[Path]) -> list[Fault]:
    """Return a fault for each image whose labels would be those of another one: a.jpg and a.png."""
    first: dict[Path, Path] = {}
    faults = []
    for file in files:
        twin = first.setdefault(file.with_suffix(""), file)
        if twin is not file:
            message = (
                f"the image has the same name as {shown(twin.name)}, so that both would have the "
                "same labels; rename one of them, with its labels"
            )
            faults.append(Fault("label-file", shown(file), message))
    return faults
