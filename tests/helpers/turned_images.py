"""Sets of images with an EXIF orientation; the object has pixels of its own color."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from helpers.coco_files import CocoFiles
from PIL import Image

SIZE = (40, 56)  # (height, width) of an upright image
BOX = (8, 4, 24, 28)  # xyxy of its object
OBJECT, GROUND = (230, 20, 20), (20, 60, 20)
ORIENTATION = 0x0112  # EXIF tag
SAVE_OPTIONS = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}

# Numpy's turns that a camera of each orientation applies to the upright image.
_STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def upright_pixels(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the upright image, (height, width, 3)."""
    pixels = np.full((*size, 3), GROUND, np.uint8)
    left, top, right, bottom = BOX
    pixels[top:bottom, left:right] = OBJECT
    return pixels


def stored_pixels(orientation: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the pixels as a camera stores them."""
    return np.ascontiguousarray(_STORED[orientation](upright_pixels(size)))


def box_of(pixels: np.ndarray) -> list[int]:
    """Return the xyxy box of the object's pixels."""
    rows, columns = np.nonzero(pixels[..., 0] > (OBJECT[0] + GROUND[0]) // 2)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def write_turned(path: Path, orientation: int, size: tuple[int, int] = SIZE) -> None:
    """Write an image file with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(stored_pixels(orientation, size))
    image.save(path, exif=exif, **SAVE_OPTIONS.get(path.suffix, {}))


def write_turned_set(
    folder: Path,
    images: Mapping[str, tuple[int, str]],
    *,
    size: tuple[int, int] = SIZE,
) -> CocoFiles:
    """Write a set with one object per image.

    Args:
        folder: created if it does not exist.
        images: orientation, and "upright" or "stored" annotations, by file name.
        size: (height, width) of the upright images.
    """
    files = CocoFiles(folder / "images", folder / "annotations.json")
    files.images.mkdir(parents=True)
    records, objects = [], []
    for image_id, (name, (orientation, frame)) in enumerate(images.items(), start=1):
        write_turned(files.images / name, orientation, size)
        pixels = upright_pixels(size) if frame == "upright" else stored_pixels(orientation, size)
        height, width = pixels.shape[:2]
        records.append({"id": image_id, "file_name": name, "height": height, "width": width})
        left, top, right, bottom = (int(side) for side in box_of(pixels))
        box = [left, top, right - left, bottom - top]
        objects.append({"id": image_id, "image_id": image_id, "category_id": 3, "bbox": box})
    categories = [{"id": 3, "name": "red thing"}]
    files.write({"images": records, "annotations": objects, "categories": categories})
    return files
