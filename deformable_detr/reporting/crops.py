"""Crops of images as data URIs, to embed in a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE_PX = 288
CONTEXT = 2.4  # side of a crop, relative to the longer side of its box
MIN_SIDE_PX = 64  # of a crop, in pixels of the image
JPEG_QUALITY = 80
HALO = (0, 0, 0)  # on both sides of a line, so that it is visible on any image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Outline:
    """Box (left, top, width, height) in pixels of the image, its color and line width."""

    box_xywh: Box
    color: tuple[int, int, int]
    width_px: int


def crop_uri(photo: Image.Image, around_xywh: Box, outlines: Sequence[Outline]) -> str:
    """Return a square crop around a box, with outlines drawn, as a `data:` URI of a JPEG.

    Args:
        photo: RGB image.
        around_xywh: left, top, width, height in pixels of `photo`.
        outlines: boxes to draw, the last one on top.
    """
    left, top, width, height = around_xywh
    side = max(MIN_SIDE_PX, CONTEXT * max(width, height))
    crop_width, crop_height = min(side, photo.width), min(side, photo.height)
    x0 = _start(left + width / 2, crop_width, photo.width)
    y0 = _start(top + height / 2, crop_height, photo.height)
    factor = SIDE_PX / max(crop_width, crop_height)
    picture = photo.resize(
        (max(1, round(crop_width * factor)), max(1, round(crop_height * factor))),
        Image.Resampling.BICUBIC,
        box=(x0, y0, x0 + crop_width, y0 + crop_height),
    )
    canvas = ImageDraw.Draw(picture)
    for outline in outlines:
        x, y, box_width, box_height = outline.box_xywh
        corners = [
            (x - x0) * factor,
            (y - y0) * factor,
            (x + box_width - x0) * factor,
            (y + box_height - y0) * factor,
        ]
        _draw_outline(canvas, corners, outline)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")


def _start(center: float, length: float, limit: int) -> float:
    """Return the start of an interval around `center`, moved inside 0 and `limit`."""
    return max(0.0, min(center - length / 2, limit - length))


def _draw_outline(canvas: ImageDraw.ImageDraw, corners: Sequence[float], outline: Outline) -> None:
    left, top, right, bottom = corners
    width = outline.width_px
    right, bottom = max(right, left + 2 * width), max(bottom, top + 2 * width)
    halo = (left - 1, top - 1, right + 1, bottom + 1)
    canvas.rectangle(halo, outline=HALO, width=width + 2)
    canvas.rectangle((left, top, right, bottom), outline=outline.color, width=width)
