"""Predict in images of as many sizes as there are images, and check that memory does not grow.

Sizes and pixels are drawn from a seed; images are made in memory, or with --files read from a
folder, and drawn. Prints the resident memory of the process after each quarter of the
images. The exit code is 1 if it grows by more than --limit MB from the first quarter to the end.
Takes about six minutes on two cores. Linux only.

Usage: .venv/bin/python scripts/check_memory.py CHECKPOINT [--images N] [--limit MB] [--files]
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deformable_detr import Detector, predict
from deformable_detr.structures import Size

SHORT_SIDES, LONG_SIDES = (200, 700), (300, 1100)  # in pixels, from and below
QUARTERS = 4
MB = 2**20


def sizes_of(count: int, seed: int) -> list[Size]:
    """Return distinct (height, width) in random order."""
    generator = np.random.default_rng(seed)
    sizes: dict[Size, None] = {}
    while len(sizes) < count:
        sides = (int(generator.integers(*SHORT_SIDES)), int(generator.integers(*LONG_SIDES)))
        sizes[sides if generator.random() < 0.5 else sides[::-1]] = None
    return list(sizes)


def image_of(size: Size, seed: int) -> Image.Image:
    """Return an image of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)


def resident_mb() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / MB


def measure(detector: Detector, sizes: Sequence[Size]) -> list[float]:
    """Predict in images of the given sizes; return the resident memory after each quarter."""

    def images() -> Iterator[Image.Image]:
        for seed, size in enumerate(sizes):
            yield image_of(size, seed)

    marks = []
    for count, _ in enumerate(detector.predict_each(images()), start=1):
        if count * QUARTERS // len(sizes) > len(marks):
            marks.append(resident_mb())
    return marks


def measure_files(detector: Detector, sizes: Sequence[Size]) -> list[float]:
    """Predict in files of the given sizes, with pictures; return the memory after each quarter."""
    marks: list[float] = []

    def note(_: str, values: Mapping[str, Any]) -> None:
        if values["done"] * QUARTERS // len(sizes) > len(marks):
            marks.append(resident_mb())

    with tempfile.TemporaryDirectory() as folder:
        for seed, size in enumerate(sizes):
            image_of(size, seed).save(Path(folder, f"{seed:05}.jpg"))
        predict(folder, checkpoint=detector, out=Path(folder, "out"), callback=note)
    return marks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if memory grows beyond the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--limit", type=float, default=100, help="growth in MB (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", action="store_true", help="image files, and a picture of each")
    options = parser.parse_args(arguments)
    detector = Detector.from_checkpoint(options.checkpoint, device="cpu")
    run = measure_files if options.files else measure
    marks = run(detector, sizes_of(options.images, options.seed))
    for quarter, mark in enumerate(marks, start=1):
        print(f"after {options.images * quarter // QUARTERS} images: {mark:.0f} MB resident")
    growth = marks[-1] - marks[0]
    print(f"growth from the first quarter to the end: {growth:.0f} MB, limit {options.limit:g} MB")
    return 1 if growth > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
