"""Views of images that the model gets in training and in evaluation."""

import math
from dataclasses import dataclass

from deformable_detr.preset import constants as c
from deformable_detr.preset.statistics import SetStatistics


@dataclass(frozen=True)
class View:
    """Sizes of images and objects as the model sees them.

    Attributes:
        crop_px: side in pixels of the crops of a training image; None for whole images.
        size: side of a resized crop, or shorter side of a training image, in pixels.
        eval_size: shorter side of an image in evaluation in pixels.
        is_limited: whether images would be larger if they did not cost too much.
        object_px: small, median and large size of an object in training, in pixels of the model's
            input; zeros without objects.
        object_share: median size of an object relative to the training view.
        num_views: number of views that do not overlap, of all training images.
        aspect: ratio of the sides of a training view, at least 1.
        eval_aspect: ratio of the sides of an evaluation image, at least 1.
    """

    crop_px: int | None
    size: int
    eval_size: int
    is_limited: bool
    object_px: tuple[float, float, float]
    object_share: float
    num_views: float
    aspect: float
    eval_aspect: float


def choose_view(train: SetStatistics, val: SetStatistics, device: c.Device) -> View:
    """Choose crops or whole images, and their sizes, in training and in evaluation.

    Objects get the same size in both. Crops are for training images of which objects fill much less
    than of evaluation images, such as one aerial photo beside tiles.
    """
    if train.medium and val.medium >= c.CROP_FACTOR * train.medium:
        return _crops(train, val, device)
    aspect = train.long_side / train.short_side
    size, is_limited = _fitting_size(train, aspect, c.MOST_PIXELS[device])
    eval_aspect = val.long_side / val.short_side
    eval_size = size
    if train.medium and val.medium:
        most = math.sqrt(c.EVAL_PIXELS_FACTOR * c.MOST_PIXELS[device] / eval_aspect)
        ratio = train.medium / val.medium
        if not 1 / c.CROP_FACTOR < ratio < c.CROP_FACTOR:
            eval_size = _rounded(min(size * ratio, most))
    return View(
        None,
        size,
        eval_size,
        is_limited,
        (size * train.small, size * train.medium, size * train.large),
        train.object_share,
        train.num_images,
        aspect,
        eval_aspect,
    )


def _crops(train: SetStatistics, val: SetStatistics, device: c.Device) -> View:
    """Choose crops in which objects are as large as in evaluation images."""
    eval_aspect = val.long_side / val.short_side
    size, is_limited = _fitting_size(val, eval_aspect, c.MOST_PIXELS[device])
    wanted = round(train.short_side * train.medium / val.medium)
    crop_px = max(min(wanted, int(train.short_side)), 1)
    per_image = max(train.short_side * train.long_side / crop_px**2, 1.0)
    scale = size * train.short_side / crop_px
    return View(
        crop_px,
        size,
        size,
        is_limited,
        (scale * train.small, scale * train.medium, scale * train.large),
        scale * train.medium / size,
        train.num_images * per_image,
        1.0,
        eval_aspect,
    )


def _fitting_size(images: SetStatistics, aspect: float, most_pixels: int) -> tuple[int, bool]:
    """Return the shorter side at which objects are large enough, and whether it was limited."""
    wanted = float(c.LEAST_SIDE)
    if images.medium:
        wanted = max(c.MEDIAN_PX / images.medium, c.SMALL_PX / max(images.small, 1e-9))
        wanted = min(wanted, c.MOST_ENLARGED * images.short_side)
    else:
        wanted = images.short_side
    most = math.sqrt(most_pixels / aspect)
    return _rounded(min(max(wanted, c.LEAST_SIDE), most)), wanted > most


def _rounded(side: float) -> int:
    return max(round(side / c.SIDE_STEP), 1) * c.SIDE_STEP
