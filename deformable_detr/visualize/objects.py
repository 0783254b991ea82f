"""Draw boxes, class names and scores on images, legible at any size and density."""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deformable_detr.finite import require_finite_values
from deformable_detr.structures import Detections
from deformable_detr.visualize.label_layout import Rectangle, place_labels

Color = tuple[int, int, int]

# Smaller images are enlarged by an integer factor, or text would hide the objects.
MIN_LONG_SIDE_PX = 900
LINE_SHARE = 1 / 350  # relative to the mean of the picture's sides
FONT_SHARE = 1 / 55
MIN_FONT_PX = 12
MAX_LABEL_SHARE = 0.15  # of the picture; if scores of a single class need more, they are omitted
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # as a step in hue, keeps all hues apart
DARK_LUMA = 150  # text on a brighter color is black
WHITE: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
CAPTION_BACKGROUND: Color = (32, 32, 32)


def class_color(label: int) -> Color:
    """Return the color of a class, which depends on its label only."""
    hue = (0.11 + label * GOLDEN_RATIO) % 1
    # Neighboring labels differ in brightness too, because there are few distinct hues.
    saturation, value = ((0.85, 1.0), (0.60, 1.0), (0.95, 0.80))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: Image.Image, detections: Detections, names: Sequence[str]
) -> Image.Image:
    """Draw detections on a copy of an image.

    Args:
        image: RGB image of the detections.
        detections: detections with boxes in pixels of `image`, best first.
        names: K class names; with a single class the labels show only the score, and nothing
            if there are many small objects.

    Returns:
        RGB picture: the image, enlarged by an integer factor if it is small. A label that would
        hide another label, or much of another object, is omitted.

    Raises:
        ValueError: a box or a score is not finite.
    """
    require_finite_values(detections.scores, "scores")
    labels = detections.labels.tolist()
    scores = [f"{score:.2f}" for score in detections.scores.tolist()]
    if len(names) > 1:
        scores = [f"{names[label]} {score}" for label, score in zip(labels, scores, strict=True)]
    return _draw(image, detections.boxes_xyxy, labels, scores, omit_if_crowded=len(names) == 1)


def draw_annotations(
    image: Image.Image, boxes_xyxy: Tensor, labels: Tensor, names: Sequence[str]
) -> Image.Image:
    """Draw annotated objects on a copy of an image; see `draw_detections`.

    Args:
        image: RGB image of the objects.
        boxes_xyxy: (T, 4) corners in pixels of `image`.
        labels: (T,) class labels in 0..K-1.
        names: K class names; with a single class no labels are drawn.
    """
    numbers = labels.tolist()
    texts = [names[number] if len(names) > 1 else "" for number in numbers]
    return _draw(image, boxes_xyxy, numbers, texts, omit_if_crowded=False)


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Arrange pictures of one size in a row, with captions above them."""
    width, height = pictures[0].size
    font_size = _font_size(pictures[0])
    bar, gap = 2 * font_size, max(2, font_size // 3)
    row_size = (len(pictures) * (width + gap) - gap, height + bar)
    row = Image.new("RGB", row_size, CAPTION_BACKGROUND)
    canvas = ImageDraw.Draw(row)
    for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = column * (width + gap)
        row.paste(picture, (left, bar))
        place = (left + font_size / 2, bar / 2)
        canvas.text(place, caption, fill=WHITE, font=_font(font_size), anchor="lm")
    return row


def _draw(
    image: Image.Image,
    boxes_xyxy: Tensor,
    labels: Sequence[int],
    texts: Sequence[str],
    *,
    omit_if_crowded: bool,
) -> Image.Image:
    require_finite_values(boxes_xyxy, "boxes")
    picture, factor = _enlarge(image)
    canvas = ImageDraw.Draw(picture)
    line = max(2, round(_mean_side(picture) * LINE_SHARE))
    boxes = [_inside(box, picture, line) for box in (boxes_xyxy * factor).tolist()]
    # The best is drawn last, on top.
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        canvas.rectangle(box, outline=class_color(label), width=line)

    font_size = _font_size(picture)
    padding = max(2, font_size // 5)
    sizes = [_plate_size(text, font_size, padding) for text in texts]
    area = sum(width * height for width, height in sizes)
    if omit_if_crowded and area > MAX_LABEL_SHARE * picture.width * picture.height:
        return picture
    for place, label, text in zip(
        place_labels(boxes, sizes, picture.size), labels, texts, strict=True
    ):
        if place is not None:
            left, top, _, bottom = place
            color = class_color(label)
            canvas.rectangle(place, fill=color)
            anchor = (left + padding, (top + bottom) / 2)
            canvas.text(anchor, text, fill=_ink(color), font=_font(font_size), anchor="lm")
    return picture


def _enlarge(picture: Image.Image) -> tuple[Image.Image, int]:
    factor = max(1, math.ceil(MIN_LONG_SIDE_PX / max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC), factor


def _inside(box: Sequence[float], picture: Image.Image, line: int) -> Rectangle:
    """Clip a box to the picture, and make it at least as large as its line width."""
    left, right = _span(box[0], box[2], picture.width, line)
    top, bottom = _span(box[1], box[3], picture.height, line)
    return left, top, right, bottom


def _span(low: float, high: float, limit: int, least: int) -> tuple[float, float]:
    low = min(max(low, 0), limit - 1 - least)
    return low, max(min(high, limit - 1), low + least)


def _plate_size(text: str, font_size: int, padding: int) -> tuple[float, float]:
    """Return the (width, height) of the plate behind a text; (0, 0) for no text."""
    if not text:
        return 0, 0
    return _font(font_size).getlength(text) + 2 * padding, font_size + 2 * padding


def _mean_side(picture: Image.Image) -> float:
    return (picture.width + picture.height) / 2


def _font_size(picture: Image.Image) -> int:
    return max(MIN_FONT_PX, round(_mean_side(picture) * FONT_SHARE))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Shipped with matplotlib; has Greek, Cyrillic and accented letters.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
    return ImageFont.truetype(str(path), size)


def _ink(background: Color) -> Color:
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > DARK_LUMA else WHITE
