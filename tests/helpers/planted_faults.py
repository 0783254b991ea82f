"""Faults planted in sound data sets, with what a check of the set must find."""

import copy
import io
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from helpers.coco_files import CocoFiles
from helpers.image_formats import PNG_SIGNATURE, png, png_chunk
from PIL import Image

SIZE = (48, 64)
NUM_IMAGES = 16
CATEGORIES = [{"id": 3, "name": "tree"}, {"id": 7, "name": "bush"}, {"id": 8, "name": "fern"}]
NAN = float("nan")


@dataclass
class Planting:
    """A set to plant faults in; the image at `index` and its two objects belong to one fault."""

    files: CocoFiles
    record: Any
    index: int
    random: np.random.Generator

    @property
    def image(self) -> dict[str, Any]:
        return self.record["images"][self.index]

    @property
    def place(self) -> int:
        """Position of one of the objects of the image."""
        return 2 * self.index + 1

    @property
    def object(self) -> dict[str, Any]:
        return self.record["annotations"][self.place]

    @property
    def path(self) -> Any:
        return self.files.images / f"{self.index:02}.png"

    def append(self, section: str, entry: object) -> int:
        self.record[section].append(entry)
        return len(self.record[section]) - 1


Expected = tuple[str, str, int | None]  # kind, section and position
Fault = Callable[[Planting], Expected]


def write_sound_set(files: CocoFiles, seed: int) -> dict[str, Any]:
    """Write the images of a sound set; return the content of its annotation file."""
    random = np.random.default_rng(seed)
    files.images.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(NUM_IMAGES):
        pixels = random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        (files.images / f"{index:02}.png").write_bytes(png(pixels))
        entry = {"id": index + 1, "file_name": f"{index:02}.png"}
        images.append(entry | {"height": SIZE[0], "width": SIZE[1]})
        for side in range(2):
            x, y = int(random.integers(0, 20)) + 32 * side, int(random.integers(0, 30))
            box = {"bbox": [x, y, 9 + side, 12], "area": 12 * (9 + side), "iscrowd": 0}
            ids = {"id": len(annotations) + 1, "image_id": index + 1}
            category = CATEGORIES[(index + side) % 3]["id"]
            annotations.append(ids | {"category_id": category} | box)
    categories = [dict(one) for one in CATEGORIES]
    return {"images": images, "annotations": annotations, "categories": categories}


def of_object(kind: str, **values: Any) -> Fault:
    def plant(to: Planting) -> Expected:
        for key, value in values.items():
            if value is DELETED:
                del to.object[key]
            else:
                to.object[key] = value
        return kind, "annotations", to.place

    return plant


def of_image(kind: str, **values: Any) -> Fault:
    def plant(to: Planting) -> Expected:
        for key, value in values.items():
            if value is DELETED:
                del to.image[key]
            else:
                to.image[key] = value
        return kind, "images", to.index

    return plant


def of_file(kind: str, change: Callable[[Planting], Any]) -> Fault:
    def plant(to: Planting) -> Expected:
        content = change(to)
        if isinstance(content, bytes):
            to.path.write_bytes(content)
        return kind, "images", to.index

    return plant


def appended(kind: str, section: str, entry: Callable[[Planting], object]) -> Fault:
    return lambda to: (kind, section, to.append(section, entry(to)))


DELETED = object()
HUGE = 10**400


def saved(to: Planting, kind: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    with Image.open(to.path) as image:
        image.convert("L").convert(mode).save(content, kind)
    return content.getvalue()


def renamed(to: Planting, name: str) -> None:
    to.path.rename(to.path.with_name(name))


def replaced(to: Planting, make: Callable[[Any], Any]) -> None:
    to.path.unlink()
    make(to.path)


def jpeg_cut(to: Planting) -> bytes:
    content = saved(to, "JPEG")
    return content[: len(content) * 3 // 4]


def bomb(_: Planting) -> bytes:
    """Return the start of a PNG file of 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        PNG_SIGNATURE + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    )


def copied(to: Planting) -> Expected:
    """Write the content of an image over the last one, which no other fault is planted in."""
    (to.files.images / f"{NUM_IMAGES - 1:02}.png").write_bytes(to.path.read_bytes())
    return "image-copy", "images", NUM_IMAGES - 1


def crowded(to: Planting) -> Expected:
    """Add 120 objects, all different, to an image."""
    for number in range(120):
        box = {"bbox": [number / 10, 1, 5, 5], "area": 25, "id": 2000 + number}
        to.append("annotations", to.object | box)
    return "more-objects-than-scored", "images", to.index


OBJECT_FAULTS: dict[str, Fault] = {
    "id a text": of_object("annotation-id", id="x1"),
    "id missing": of_object("annotation-id", id=DELETED),
    "id twice": of_object("annotation-id-twice", id=1),
    "unknown image": of_object("unknown-image", image_id=4711),
    "image id missing": of_object("annotation-image-id", image_id=DELETED),
    "unknown category": of_object("unknown-category", category_id=99),
    "category null": of_object("annotation-category-id", category_id=None),
    "box of three": of_object("annotation-bbox", bbox=[1, 2, 3]),
    "box not a number": of_object("annotation-bbox", bbox=[1, NAN, 3, 4]),
    "box of texts": of_object("annotation-bbox", bbox=["1", "2", "3", "4"]),
    "box without end": of_object("annotation-bbox", bbox=[1, 2, HUGE, 4]),
    "box missing": of_object("annotation-bbox", bbox=DELETED),
    "box negative": of_object("box-negative", bbox=[30, 30, -9, -9]),
    "box flat": of_object("box-without-extent", bbox=[30, 30, 9, 0]),
    "box outside": of_object("box-outside", bbox=[100, 30, 9, 9]),
    "box partly outside": of_object("box-partly-outside", bbox=[50, 30, 30, 9]),
    "box in fractions": of_object("box-tiny", bbox=[0.5, 0.5, 0.3, 0.2]),
    "area negative": of_object("annotation-area", area=-4),
    "area infinite": of_object("annotation-area", area=float("inf")),
    "area zero": of_object("area-zero", area=0),
    "area too large": of_object("area-too-large", area=900),
    "iscrowd 2": of_object("annotation-iscrowd", iscrowd=2),
    "iscrowd a text": of_object("annotation-iscrowd", iscrowd="0"),
    "iscrowd a bool": of_object("annotation-iscrowd", iscrowd=False),
    "ignore 1": of_object("annotation-ignore", ignore=1),
    "object twice": appended(
        "box-twice", "annotations", lambda to: to.object | {"id": 1000 + to.index}
    ),
    "object of two categories": appended(
        "box-of-two-categories",
        "annotations",
        lambda to: (
            to.object
            | {"id": 1000 + to.index, "category_id": 3 + 4 * (to.object["category_id"] == 3)}
        ),
    ),
    "annotation a number": appended("entry-not-an-object", "annotations", lambda to: 7),
    "crowded": crowded,
}
IMAGE_FAULTS: dict[str, Fault] = {
    "image id a text": of_image("image-id", id="one"),
    "image id a bool": of_image("image-id", id=True),
    "image id missing": of_image("image-id", id=DELETED),
    "image id twice": appended(
        "image-id-twice", "images", lambda to: to.image | {"file_name": "more/x.png"}
    ),
    "name absolute": of_image("image-file-name", file_name="/etc/passwd"),
    "name above": of_image("image-file-name", file_name="../a.png"),
    "name of Windows": of_image("image-file-name", file_name="C:\\a.png"),
    "name a URL": of_image("image-file-name", file_name="http://a.org/a.png"),
    "name with a null": of_image("image-file-name", file_name="a\0.png"),
    "name empty": of_image("image-file-name", file_name=""),
    "height missing": of_image("image-height", height=DELETED),
    "height negative": of_image("image-height", height=-4),
    "width a text": of_image("image-width", width="64"),
    "size swapped": of_image("image-size-swapped", height=SIZE[1], width=SIZE[0]),
    "size wrong": of_image("image-size", height=SIZE[0] + 1),
    "file missing": of_file("image-missing", lambda to: to.path.unlink()),
    "file of another case": of_file("image-case", lambda to: renamed(to, f"{to.index:02}.PNG")),
    "file of another suffix": of_file("image-suffix", lambda to: renamed(to, f"{to.index:02}.bmp")),
    "file a folder": of_file("image-not-regular", lambda to: replaced(to, os.mkdir)),
    "file a pipe": of_file("image-not-regular", lambda to: replaced(to, os.mkfifo)),
    "file empty": of_file("image-unreadable", lambda to: b""),
    "file a text": of_file("image-unreadable", lambda to: b"<html>not found</html>"),
    "file cut": of_file("image-truncated", lambda to: to.path.read_bytes()[:-800]),
    "JPEG cut": of_file("image-truncated", jpeg_cut),
    "BMP cut": of_file("image-truncated", lambda to: saved(to, "BMP")[:-800]),
    "file of 32 bits": of_file("image-depth", lambda to: saved(to, "TIFF", "F")),
    "file of too many pixels": of_file("image-pixels", bomb),
    "file blank": of_file("image-blank", lambda to: png(np.zeros((*SIZE, 3), np.uint8))),
    "file of another format": of_file("image-other-format", lambda to: saved(to, "JPEG")),
    "file copied": copied,
    "image twice": appended("image-twice", "images", lambda to: to.image | {"id": 500 + to.index}),
    "image null": appended("entry-not-an-object", "images", lambda to: None),
}
CATEGORY_FAULTS: dict[str, Fault] = {
    "category id a float": appended(
        "category-id", "categories", lambda to: {"id": 9.5, "name": "a"}
    ),
    "category id twice": appended(
        "category-id-twice", "categories", lambda to: {"id": 3, "name": "other"}
    ),
    "category name twice": appended(
        "category-name-twice", "categories", lambda to: {"id": 40, "name": "Tree "}
    ),
    "category name missing": appended("category-name", "categories", lambda to: {"id": 41}),
}
ENTRY_FAULTS = OBJECT_FAULTS | IMAGE_FAULTS | CATEGORY_FAULTS


def boxes(change: Callable[[float, float, float, float], list[float]]) -> Callable[[Any], Any]:
    """Return the fault that writes all boxes in another format."""

    def plant(record: Any) -> Any:
        for entry in record["annotations"]:
            entry["bbox"] = change(*entry["bbox"])
            entry["area"] = 1e-3
        return record

    return plant


def shifted(record: Any) -> Any:
    for entry in record["annotations"]:
        entry["category_id"] = [3, 7, 8].index(entry["category_id"])
    for place, entry in enumerate(record["categories"]):
        entry["id"] = place + 1
    return record


def as_json(record: Any) -> bytes:
    return json.dumps(record).encode()


# Faults of a file as a whole: kind, and the change of the content, which may give bytes.
FILE_FAULTS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "XML": ("file-unreadable", lambda _: b"<annotation/>"),
    "empty": ("file-unreadable", lambda _: b""),
    "cut": ("file-unreadable", lambda record: as_json(record)[:-40]),
    "Latin-1": (
        "file-unreadable",
        lambda record: as_json(record).replace(b"tree", "B\u00e4ume".encode("latin-1")),
    ),
    "nested": ("file-unreadable", lambda _: b"[" * 100_000),
    "list": ("file-not-an-object", lambda record: record["annotations"]),
    "null": ("file-not-an-object", lambda _: None),
    "no annotations": (
        "section-missing",
        lambda record: {key: record[key] for key in ("images", "categories")},
    ),
    "categories by id": ("section-missing", lambda record: record | {"categories": {"1": "a"}}),
    "no images": ("section-empty", lambda record: record | {"images": []}),
    "no categories": ("section-empty", lambda record: record | {"categories": []}),
    "nothing annotated": ("no-object", lambda record: record | {"annotations": []}),
    "all crowds": (
        "no-object",
        lambda record: (
            record | {"annotations": [one | {"iscrowd": 1} for one in record["annotations"]]}
        ),
    ),
    "boxes of corners": ("boxes-xyxy", boxes(lambda x, y, w, h: [x, y, x + w, y + h])),
    "boxes of centers": (
        "boxes-centered",
        boxes(lambda x, y, w, h: [64 - w / 2, 48 - h / 2, w, h]),
    ),
    "boxes in fractions": (
        "boxes-normalized",
        boxes(lambda x, y, w, h: [x / 64, y / 48, w / 64, h / 48]),
    ),
    "labels shifted": ("categories-shifted", shifted),
}

_VALUES = (
    *(None, True, False, 0, 1, -1, 0.5, NAN, float("inf"), HUGE, 2**63, -(2**63), 1e308, "", "x"),
    *(
        "1",
        "\0",
        "\ud800",
        "../x",
        "a" * 1000,
        "\x1b[31m",
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        [1, 2, 3, 4],
    ),
    *(["1"] * 4, [float("inf")] * 4, [0, 0, 1e9, 1e9], [0, 0, 10**9, 1], [None] * 4, [1e308] * 4),
)


def mutate(record: dict[str, Any], random: np.random.Generator) -> None:
    """Change an entry of a record, a value in it, or now and then a whole section."""
    section = random.choice(sorted(record))
    entries = record[section]
    value = copy.deepcopy(_VALUES[random.integers(len(_VALUES))])
    if random.random() < 0.05 or not isinstance(entries, list) or not entries:
        record[section] = value
        return
    place = random.integers(len(entries))
    entry = entries[place]
    if random.random() < 0.1:
        entries[place] = value
    elif random.random() < 0.1:
        entries.append(copy.deepcopy(entry))
    elif isinstance(entry, dict):
        entry[random.choice([*entry, "ignore", "name", "is_category"])] = value
