"""Numbers of a data set: images, objects, sizes and places."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_DETECTIONS = 100  # of an image, that COCO's evaluation takes
RARE_SHARE = 0.05  # of the objects; a class with fewer is rare
SMALL_PX = 12.0  # as the model sees it; hardly more than a cell of the finest level, of stride 8


@dataclass(frozen=True)
class Layer:
    """Images and objects of one set; an image is its row of the arrays.

    Attributes:
        name: "train" or "val".
        files: N names.
        sizes: (N, 2) height and width in pixels.
        boxes_xywh: (T, 4) left, top, width and height in pixels.
        owners: (T,) row of the image of each box.
        labels: (T,) position of the class of each box in the list of classes.
    """

    name: str
    files: Sequence[str]
    sizes: npt.NDArray[np.int64]
    boxes_xywh: npt.NDArray[np.float64]
    owners: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @property
    def per_image(self) -> npt.NDArray[np.int64]:
        """(N,) number of objects of each image."""
        return np.bincount(self.owners, minlength=len(self.files))

    @property
    def relative_sides(self) -> npt.NDArray[np.float64]:
        """(T,) square root of the area of each box relative to the shorter side of its image."""
        areas = self.boxes_xywh[:, 2:].clip(0).prod(1)
        shorter: npt.NDArray[np.float64] = self.sizes[self.owners].min(1).astype(float)
        return np.sqrt(areas) / shorter

    def sides_px(self, shorter_side: int) -> npt.NDArray[np.float64]:
        """(T,) square root of the area of each box in pixels of resized images."""
        return self.relative_sides * shorter_side


@dataclass(frozen=True)
class DataFindings:
    """All sets of a data set.

    Attributes:
        format: format of its files.
        layers: the sets.
        classes: names of the classes.
        eval_size: shorter side in pixels of the images as the model would see them.
        left_out: what was left out in reading, one line each.
    """

    format: str
    layers: Sequence[Layer]
    classes: Sequence[str]
    eval_size: int
    left_out: Sequence[str]

    @property
    def class_counts(self) -> Mapping[str, tuple[int, ...]]:
        """Number of objects by class, of each set; the most frequent first."""
        counts = [np.bincount(one.labels, minlength=len(self.classes)) for one in self.layers]
        rows = {
            name: tuple(int(own[place]) for own in counts)
            for place, name in enumerate(self.classes)
        }
        return dict(sorted(rows.items(), key=lambda row: -sum(row[1])))

    @property
    def rare_classes(self) -> list[str]:
        """Classes with some, but less than a twentieth of the objects of the first set."""
        total = max(len(self.layers[0].labels), 1)
        return [
            name for name, counts in self.class_counts.items() if 0 < counts[0] < RARE_SHARE * total
        ]

    @property
    def densest(self) -> tuple[str, int]:
        """Name of the image with the most objects, and their number."""
        name, count = "", 0
        for one in self.layers:
            row = int(one.per_image.argmax())
            if one.per_image[row] > count or not name:
                name, count = one.files[row], int(one.per_image[row])
        return name, count

    @property
    def num_crowded(self) -> int:
        """Number of images with more objects than COCO's evaluation takes detections."""
        return sum(int((one.per_image > MOST_DETECTIONS).sum()) for one in self.layers)

    @property
    def num_small(self) -> int:
        """Number of objects that are too small as the model sees them."""
        return sum(int((one.sides_px(self.eval_size) < SMALL_PX).sum()) for one in self.layers)

    @property
    def num_objects(self) -> int:
        """Number of objects."""
        return sum(len(one.labels) for one in self.layers)

    @property
    def image_sizes(self) -> list[tuple[str, int]]:
        """The most frequent sizes of images, as "width x height", and their numbers."""
        sizes = Counter(
            f"{width} x {height}" for one in self.layers for height, width in one.sizes.tolist()
        )
        return sizes.most_common(10)

    def lines(self) -> list[str]:
        """Summarize in lines for a terminal."""
        lines = [
            f"{one.name:>5}: {len(one.files):,} images, {len(one.labels):,} objects, "
            f"{int((one.per_image == 0).sum()):,} without any"
            for one in self.layers
        ]
        sides = np.concatenate([one.sides_px(self.eval_size) for one in self.layers])
        if len(sides):
            small, median, large = np.quantile(sides, [0.1, 0.5, 0.9])
            lines.append(
                f"sizes: median {median:.0f} px, 80 % from {small:.0f} to {large:.0f} px, in "
                f"images of {self.eval_size} px"
            )
        if self.num_small:
            lines.append(
                f"small: {self.num_small:,} of {self.num_objects:,} objects are below "
                f"{SMALL_PX:.0f} px then"
            )
        name, count = self.densest
        lines.append(f"dense: {count:,} objects in {name}")
        if self.num_crowded:
            lines.append(
                f"       {self.num_crowded:,} images have more than {MOST_DETECTIONS}, the "
                "detections that COCO's AP takes"
            )
        return lines
