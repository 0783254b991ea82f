"""Statistics of a data set: sizes of images and objects, and numbers of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SAMPLES = 500  # objects around which a crowd is looked for
_SMALL, _LARGE = 0.1, 0.9  # quantiles


@dataclass(frozen=True)
class SetStatistics:
    """Statistics of the annotated images of a set.

    The size of an object is the square root of the area of its box. Of a set without objects, all
    sizes of objects are 0.

    Attributes:
        num_images: number of images.
        short_side: median of the shorter side of an image in pixels.
        long_side: median of the longer side of an image in pixels.
        object_px: median size of an object in pixels.
        object_share: median over objects of the size relative to the square root of the image area.
        small, medium, large: quantiles 0.1, 0.5 and 0.9 over objects of the size relative to the
            shorter side of the image.
        most_objects: number of objects of the densest image.
        class_counts: number of objects of each class.
    """

    num_images: int
    short_side: float
    long_side: float
    object_px: float
    object_share: float
    small: float
    medium: float
    large: float
    most_objects: int
    class_counts: tuple[int, ...]

    @property
    def num_objects(self) -> int:
        """Number of objects."""
        return sum(self.class_counts)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without objects too."""
        return len(self.class_counts)


def measure(
    sizes: npt.NDArray[np.int64],
    boxes_xyxy: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    num_objects: npt.NDArray[np.int64],
    *,
    num_classes: int,
) -> SetStatistics:
    """Measure a set of I images with T objects.

    Args:
        sizes: (I, 2) height and width of each image in pixels.
        boxes_xyxy: (T, 4) boxes in pixels, grouped by image in the order of `sizes`.
        labels: (T,) labels in 0..num_classes-1.
        num_objects: (I,) number of objects of each image; T in all.
        num_classes: number of classes.

    Raises:
        ValueError: there are no images.
    """
    if len(sizes) == 0:
        raise ValueError("a data set must have at least one image, got none")
    short, long = sizes.min(1).astype(float), sizes.max(1).astype(float)
    objects = np.sqrt((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).astype(float).prod(1))
    relative = objects / np.repeat(short, num_objects)
    shares = objects / np.repeat(np.sqrt(short * long), num_objects)
    return SetStatistics(
        num_images=len(sizes),
        short_side=float(np.median(short)),
        long_side=float(np.median(long)),
        object_px=_quantile(objects, 0.5),
        object_share=_quantile(shares, 0.5),
        small=_quantile(relative, _SMALL),
        medium=_quantile(relative, 0.5),
        large=_quantile(relative, _LARGE),
        most_objects=int(num_objects.max()),
        class_counts=tuple(np.bincount(labels, minlength=num_classes).tolist()),
    )


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else 0.0


def densest_crop(
    boxes_xyxy: npt.NDArray[np.float32], num_objects: npt.NDArray[np.int64], *, side: float
) -> int:
    """Count the objects of the densest square crop, by centers, around evenly chosen objects.

    Args:
        boxes_xyxy: (T, 4) boxes in pixels, grouped by image.
        num_objects: (I,) number of objects of each image.
        side: side of the crop in pixels.
    """
    centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    ends = np.cumsum(num_objects)
    owners = np.repeat(np.arange(len(num_objects)), num_objects)
    chosen = np.unique(np.linspace(0, len(centers) - 1, min(len(centers), _SAMPLES)).astype(int))
    most = 0
    for index in chosen:
        image = owners[index]
        others = centers[ends[image] - num_objects[image] : ends[image]]
        inside = (np.abs(others - centers[index]) <= side / 2).all(1)
        most = max(most, int(inside.sum()))
    return most
