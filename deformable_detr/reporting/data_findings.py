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
class Split:
    """Images and objects of the training or the validation set.

    Attributes:
        name: "train" or "val".
        files: I paths of the images below their folder.
        sizes: (I, 2) height and width of the images in pixels.
        num_objects: (I,) number of objects of each image; T in all.
        boxes_xyxy: (T, 4) boxes in pixels, grouped by image.
        labels: (T,) labels in 0..K-1.
        short_side: shorter side of the images in pixels as the model sees them.
    """

    name: str
    files: Sequence[str]
    sizes: npt.NDArray[np.int64]
    num_objects: npt.NDArray[np.int64]
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    short_side: float

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """(T,) row of the image of each box."""
        return np.repeat(np.arange(len(self.files)), self.num_objects)

    @property
    def box_sizes(self) -> npt.NDArray[np.float64]:
        """(T, 2) width and height of each box in pixels of its image."""
        sizes: npt.NDArray[np.float64] = self.boxes_xyxy.astype(float)
        return sizes[:, 2:] - sizes[:, :2]

    @property
    def seen_px(self) -> npt.NDArray[np.float64]:
        """(T,) square root of the area of each box in pixels, as the model sees it."""
        scales = self.short_side / self.sizes.min(1)
        return np.sqrt(self.box_sizes.prod(1)) * scales[self.owners]


@dataclass(frozen=True)
class DataFindings:
    """Numbers of a data set.

    Attributes:
        format: format of its files.
        splits: the training set, and the validation set if there is one.
        classes: names of the K classes.
        left_out: what was left out in reading, one line each.
    """

    format: str
    splits: Sequence[Split]
    classes: Sequence[str]
    left_out: Sequence[str]

    @property
    def class_counts(self) -> Mapping[str, tuple[int, ...]]:
        """Number of objects by class, of each split; the most frequent first."""
        counts = [np.bincount(one.labels, minlength=len(self.classes)) for one in self.splits]
        rows = {
            name: tuple(int(own[label]) for own in counts)
            for label, name in enumerate(self.classes)
        }
        return dict(sorted(rows.items(), key=lambda row: -sum(row[1])))

    @property
    def rare_classes(self) -> list[str]:
        """Classes with some, but less than a twentieth of the objects of the first split."""
        total = len(self.splits[0].labels)
        return [
            name for name, counts in self.class_counts.items() if 0 < counts[0] < RARE_SHARE * total
        ]

    @property
    def densest(self) -> tuple[str, int]:
        """Name of the image with the most objects, and their number."""
        rows = [
            (one.files[int(one.num_objects.argmax())], int(one.num_objects.max()))
            for one in self.splits
        ]
        return max(rows, key=lambda row: row[1])

    @property
    def num_crowded(self) -> int:
        """Number of images with more objects than COCO's evaluation takes detections."""
        return sum(int((one.num_objects > MOST_DETECTIONS).sum()) for one in self.splits)

    @property
    def num_small(self) -> int:
        """Number of objects that are too small as the model sees them."""
        return sum(int((one.seen_px < SMALL_PX).sum()) for one in self.splits)

    @property
    def num_objects(self) -> int:
        """Number of objects."""
        return sum(len(one.labels) for one in self.splits)

    @property
    def image_sizes(self) -> list[tuple[str, int]]:
        """The most frequent sizes of images, as "width x height", and their numbers."""
        sizes = Counter(
            f"{width} x {height}" for one in self.splits for height, width in one.sizes.tolist()
        )
        return sizes.most_common(10)

    def lines(self) -> list[str]:
        """Summarize in lines for a terminal."""
        lines = [
            f"{one.name:>5}: {len(one.files):,} images, {len(one.labels):,} objects, "
            f"{int((one.num_objects == 0).sum()):,} images without any"
            for one in self.splits
        ]
        sides = np.concatenate([one.seen_px for one in self.splits])
        if len(sides):
            small, median, large = np.quantile(sides, [0.1, 0.5, 0.9])
            lines.append(
                f"sizes: as the model sees them, median {median:.0f} px, 80 % from {small:.0f} to "
                f"{large:.0f} px"
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
