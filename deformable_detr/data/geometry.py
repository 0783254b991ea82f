"""Geometric operations on samples: image, boxes and areas change together."""

import math
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from deformable_detr.boxes import area_xyxy, clip_xyxy
from deformable_detr.pixels.channels import AnyImage
from deformable_detr.structures import Sample, Size

ORDINARY_RATIO = 20  # of the longer to the shorter side; the official rule holds up to it
MOST_PIXELS = 2**25  # of a resized image without a maximum size: 128 MiB


def resized_size(size: Size, short_side: int, max_size: int | None) -> Size:
    """Return the (height, width) whose shorter side is `short_side`.

    The longer side is truncated to an integer. If it would exceed `max_size`, the shorter side
    is reduced instead (rounded half to even), as in the official code. This rounding can make the
    longer side exceed `max_size` by up to half the ratio of the sides; of strips longer than 20:1
    it is cut to `max_size`. Without `max_size` the result has at most 2**25 pixels.
    """
    short, long = min(size), max(size)
    if max_size is not None and long / short * short_side > max_size:
        short_side = max(round(max_size * short / long), 1)
    elif max_size is None and short_side * short_side * long > MOST_PIXELS * short:
        short_side = max(math.isqrt(MOST_PIXELS * short // long), 1)
    long_side = long if short == short_side else int(short_side * long / short)
    if long > ORDINARY_RATIO * short:
        long_side = min(long_side, max_size or MOST_PIXELS // short_side)
    return (short_side, long_side) if size[0] <= size[1] else (long_side, short_side)


def resize_image(image: AnyImage, size: Size) -> AnyImage:
    """Resize to (height, width) with antialiased bilinear interpolation."""
    height, width = size
    if (image.height, image.width) == size:
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def resize(sample: Sample, size: Size) -> Sample:
    """Resize image and boxes to (height, width); see `resize_image`."""
    if size == sample.size:
        return sample
    y_ratio, x_ratio = size[0] / sample.size[0], size[1] / sample.size[1]
    return replace(
        sample,
        image=resize_image(sample.image, size),
        boxes_xyxy=sample.boxes_xyxy * torch.tensor((x_ratio, y_ratio, x_ratio, y_ratio)),
        area=sample.area * (x_ratio * y_ratio),
    )


def crop(sample: Sample, *, top: int, left: int, size: Size, min_visibility: float = 0.0) -> Sample:
    """Crop to a region inside the image; boxes are clipped, and empty ones are dropped.

    Args:
        sample: sample to crop; it is not modified.
        top: first row of the region.
        left: first column of the region.
        size: (height, width) of the region.
        min_visibility: boxes that keep a smaller fraction of their area are dropped too.
    """
    shift = torch.tensor((left, top, left, top))
    boxes_xyxy = clip_xyxy(sample.boxes_xyxy - shift, size)
    area = area_xyxy(boxes_xyxy)
    keep = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(1)
    keep &= area >= min_visibility * area_xyxy(sample.boxes_xyxy)
    return replace(
        sample,
        image=sample.image.crop((left, top, left + size[1], top + size[0])),
        boxes_xyxy=boxes_xyxy[keep],
        labels=sample.labels[keep],
        area=area[keep],  # of the box: the visible part of the mask is unknown here
    )


def flip_horizontally(sample: Sample) -> Sample:
    """Flip left and right."""
    x0, y0, x1, y1 = sample.boxes_xyxy.unbind(1)
    width = sample.size[1]
    return _turned(sample, Image.Transpose.FLIP_LEFT_RIGHT, (width - x1, y0, width - x0, y1))


def rotate_quarter(sample: Sample) -> Sample:
    """Rotate by 90 degrees counter-clockwise."""
    x0, y0, x1, y1 = sample.boxes_xyxy.unbind(1)
    width = sample.size[1]
    return _turned(sample, Image.Transpose.ROTATE_90, (y0, width - x1, y1, width - x0))


def _turned(sample: Sample, how: Image.Transpose, corners: tuple[Tensor, ...]) -> Sample:
    return replace(
        sample, image=sample.image.transpose(how), boxes_xyxy=torch.stack(corners, dim=1)
    )
