"""Draw boxes, class names and scores on images, legible at any size and density."""

import colorsys
import math
from bisect import bisect
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor

from deformable_detr.finite import require_finite_values
from deformable_detr.labels import LabelSpace
from deformable_detr.structures import Detections
from deformable_detr.visualize.fonts import ELLIPSIS, drawn_name, font, font_file
from deformable_detr.visualize.label_layout import Rectangle, place_labels, place_note

Color = tuple[int, int, int]

# Smaller images are enlarged by an integer factor, or text would hide the objects.
MIN_LONG_SIDE_PX = 900
LINE_SHARE = 1 / 350  # relative to the mean of the picture's sides
RIM_SHARE = 1 / 3  # relative to the line, on both sides of it
FONT_SHARE = 1 / 55
MIN_FONT_PX = 12
MAX_ELONGATION = 4  # a strip has lines and text of the picture with the same short side
# A label is cut at half of the picture's width, but not below this many times the font size.
MIN_LABEL_FONTS = 20
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


class _Label(NamedTuple):
    """Texts of a label: class name and score, either may be empty."""

    name: str
    score: str


def draw_detections(
    image: Image.Image, detections: Detections, categories: LabelSpace
) -> Image.Image:
    """Draw detections on a copy of an image.

    Args:
        image: RGB image of the detections.
        detections: detections with boxes in pixels of `image`, best first.
        categories: categories of the K labels. With a single one the labels show only the score,
            and nothing if there are many small objects. `drawn_name` tells which names are shown.

    Returns:
        RGB picture: the image, enlarged by an integer factor if it is small. A label that would
        hide another label, or much of another object, is omitted; a note such as "+12 labels" in
        a corner counts them.

    Raises:
        ValueError: a box or a score is not finite.
    """
    require_finite_values(detections.scores, "scores")
    labels, is_single = detections.labels.tolist(), categories.num_classes == 1
    texts = [
        _Label("" if is_single else drawn_name(categories, label), f"{score:.2f}")
        for label, score in zip(labels, detections.scores.tolist(), strict=True)
    ]
    return _draw(image, detections.boxes_xyxy, labels, texts, omit_if_crowded=is_single)


def draw_annotations(
    image: Image.Image, boxes_xyxy: Tensor, labels: Tensor, categories: LabelSpace
) -> Image.Image:
    """Draw annotated objects on a copy of an image; see `draw_detections`.

    Args:
        image: RGB image of the objects.
        boxes_xyxy: (T, 4) corners in pixels of `image`.
        labels: (T,) class labels in 0..K-1.
        categories: categories of the K labels; with a single one no labels are drawn.
    """
    numbers, is_single = labels.tolist(), categories.num_classes == 1
    texts = [_Label("" if is_single else drawn_name(categories, one), "") for one in numbers]
    return _draw(image, boxes_xyxy, numbers, texts, omit_if_crowded=False)


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Arrange pictures of one size in a row, with captions above them, cut to their width."""
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
        text = _cut(caption, font_size, width - font_size)
        canvas.text(place, text, fill=WHITE, font=font(None, font_size), anchor="lm")
    return row


def _draw(
    image: Image.Image,
    boxes_xyxy: Tensor,
    labels: Sequence[int],
    texts: Sequence[_Label],
    *,
    omit_if_crowded: bool,
) -> Image.Image:
    require_finite_values(boxes_xyxy, "boxes")
    picture, factor = _enlarge(image)
    canvas = ImageDraw.Draw(picture)
    line = max(2, round(_typical_side(picture) * LINE_SHARE))
    boxes = [_inside(box, picture, line) for box in (boxes_xyxy * factor).tolist()]
    # The best is drawn last, on top.
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        _draw_box(canvas, box, class_color(label), line)

    font_size = _font_size(picture)
    texts = [_fitted(text, font_size, picture.width) for text in texts]
    sizes = [_plate_size(text, font_size) for text in texts]
    area = sum(width * height for width, height in sizes)
    places: list[Rectangle | None] = [None] * len(boxes)
    if not omit_if_crowded or area <= MAX_LABEL_SHARE * picture.width * picture.height:
        places = place_labels(boxes, sizes, picture.size)
    for place, label, text in zip(places, labels, texts, strict=True):
        if place is not None:
            _draw_plate(canvas, place, text, class_color(label), font_size)
    omitted = sum(place is None and any(text) for place, text in zip(places, texts, strict=True))
    if omitted:
        kind = "score" if omit_if_crowded else "label"
        note = _Label("", f"+{omitted} {kind}{'s' if omitted > 1 else ''}")
        taken = [*boxes, *(place for place in places if place is not None)]
        corner = place_note(_plate_size(note, font_size), taken, picture.size)
        if corner is not None:
            _draw_plate(canvas, corner, note, CAPTION_BACKGROUND, font_size)
    return picture


def _draw_box(canvas: ImageDraw.ImageDraw, box: Rectangle, color: Color, line: int) -> None:
    """Draw a box with rims inside and outside, so that it is visible on any image."""
    rim = max(1, round(line * RIM_SHARE))
    left, top, right, bottom = box
    outside = (left - rim, top - rim, right + rim, bottom + rim)
    canvas.rectangle(outside, outline=_ink(color), width=line + 2 * rim)
    canvas.rectangle(box, outline=color, width=line)


def _draw_plate(
    canvas: ImageDraw.ImageDraw, place: Rectangle, text: _Label, color: Color, font_size: int
) -> None:
    left, top, _, bottom = place
    canvas.rectangle(place, fill=color, outline=_ink(color))
    # Fonts differ in height, but share the line that letters stand on.
    ascent, descent = font(None, font_size).getmetrics()
    x, y = left + _padding(font_size), (top + bottom + ascent - descent) / 2
    for part, face in _parts(text):
        drawn_with = font(face, font_size)
        canvas.text((x, y), part, fill=_ink(color), font=drawn_with, anchor="ls")
        x += drawn_with.getlength(part)


def _parts(text: _Label) -> list[tuple[str, str | None]]:
    """Return the parts of a label, from left to right, and their font files.

    The score is a part of its own, as the name may be written from right to left.
    """
    space = " " if text.name and text.score else ""
    parts = [(text.name, font_file(text.name)), (space + text.score, None)]
    return [(part, face) for part, face in parts if part]


def _fitted(text: _Label, font_size: int, width: int) -> _Label:
    """Cut the name so that the label has a sensible width in a picture of `width` pixels."""
    if not text.name:
        return text
    longest = min(width - 1, max(width / 2, MIN_LABEL_FONTS * font_size))
    rest = _plate_size(_Label("", f" {text.score}"), font_size)[0]
    return _Label(_cut(text.name, font_size, longest - rest), text.score)


def _cut(text: str, font_size: int, width: float) -> str:
    """Return a text, or its beginning with an ellipsis, of at most `width` pixels."""
    face = font(font_file(text), font_size)
    if face.getlength(text) <= width:
        return text

    def shortened(count: int) -> str:
        return text[:count].rstrip() + ELLIPSIS if count else ""

    fits = bisect(range(1, len(text)), width, key=lambda count: face.getlength(shortened(count)))
    return shortened(fits)


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


def _plate_size(text: _Label, font_size: int) -> tuple[float, float]:
    """Return the (width, height) of the plate behind a text; (0, 0) for no text."""
    parts = _parts(text)
    if not parts:
        return 0, 0
    width = sum(font(face, font_size).getlength(part) for part, face in parts)
    return width + 2 * _padding(font_size), font_size + 2 * _padding(font_size)


def _padding(font_size: int) -> int:
    return max(2, font_size // 5)


def _typical_side(picture: Image.Image) -> float:
    return min((picture.width + picture.height) / 2, MAX_ELONGATION * min(picture.size))


def _font_size(picture: Image.Image) -> int:
    return max(MIN_FONT_PX, round(_typical_side(picture) * FONT_SHARE))


def _ink(background: Color) -> Color:
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > DARK_LUMA else WHITE
