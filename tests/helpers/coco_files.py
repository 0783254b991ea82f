"""Synthetic COCO sets: colored rectangles on noise, one color per category."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Sparse ids on purpose: a category id must not be used as a label.
CATEGORIES = {3: "red thing", 7: "blue thing"}
_COLORS = ((220, 40, 40), (40, 60, 220), (40, 200, 60), (220, 200, 40))
_MAX_OBJECTS = 3


@dataclass(frozen=True)
class CocoFiles:
    """Paths of a set: the folder of its images, and its annotation file."""

    images: Path
    annotations: Path

    def read(self) -> dict[str, Any]:
        """Read the annotation file as plain objects."""
        return json.loads(self.annotations.read_text())

    def write(self, record: object) -> None:
        """Replace the annotation file."""
        self.annotations.write_text(json.dumps(record))


def write_coco_set(
    folder: Path,
    *,
    num_images: int = 4,
    size: tuple[int, int] = (96, 128),
    sizes: Sequence[tuple[int, int]] = (),
    categories: Mapping[int, str] = CATEGORIES,
    seed: int = 0,
    empty: Collection[int] = (),
) -> CocoFiles:
    """Write a set that a small detector can learn in a minute.

    Args:
        folder: created if it does not exist.
        num_images: number of images; ids are 1..num_images.
        size: (height, width) of every image, at least 16 each.
        sizes: sizes of the images, repeated if there are more images; empty for `size`.
        categories: name by category id; at most four.
        seed: seed of all random numbers.
        empty: ids of the images without objects.
    """
    random = np.random.default_rng(seed)
    files = CocoFiles(folder / "images", folder / "annotations.json")
    files.images.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        size = sizes[(image_id - 1) % len(sizes)] if sizes else size
        pixels = random.integers(90, 150, (*size, 3), dtype=np.uint8)
        boxes = [] if image_id in empty else _place_boxes(random, size)
        for x, y, width, height in boxes:
            label = int(random.integers(len(categories)))
            pixels[y : y + height, x : x + width] = _COLORS[label]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": list(categories)[label],
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        name = f"{image_id:04}.png"
        Image.fromarray(pixels).save(files.images / name)
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
    names = [{"id": category_id, "name": name} for category_id, name in categories.items()]
    files.write({"images": images, "annotations": annotations, "categories": names})
    return files


def _place_boxes(random: np.random.Generator, size: tuple[int, int]) -> list[list[int]]:
    """Draw one to three integer xywh boxes, each in its own part of the image's width."""
    rows, columns = size
    count = int(random.integers(1, _MAX_OBJECTS + 1))
    room = columns // count
    boxes = []
    for place in range(count):
        width = int(random.integers(room // 3, room * 3 // 4))
        height = int(random.integers(rows // 3, rows * 3 // 4))
        x = place * room + int(random.integers(0, room - width))
        boxes.append([x, int(random.integers(0, rows - height)), width, height])
    return boxes
