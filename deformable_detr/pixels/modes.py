"""Modes of Pillow images: their channels and depth, and conversion to RGB and to gray."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
GRAY = ("1", "L", "I", *SIXTEEN_BITS)
BANDS = {"LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4}  # modes whose channels are kept as they are
_KNOWN_AS_16_BITS = ("PNG", "PPM", None)  # formats of which mode I holds 16 bits; None: in memory
WHITE = {12: 4095, 16: 65535}  # largest value by bits
_BLOCK_ROWS = 64  # that are converted at once


def tag_values(tag: Any) -> tuple[Any, ...]:
    """Return the values of a TIFF tag, which may be one or several."""
    return tag if isinstance(tag, tuple) else (tag,)


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to a new RGB image."""
    if image.mode == "I" or image.mode in SIXTEEN_BITS:
        return Image.fromarray(_eight_bit_gray(image)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # colors multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA") or has_transparent_color(image):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=alpha)
            return white
    return image.convert("RGB")


def has_transparent_color(image: Image.Image) -> bool:
    """Return whether pixels of one color, or some of a palette, are transparent."""
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return True
    color = image.info.get("transparency")
    if color is None or image.mode not in ("1", "L", "P", "RGB"):
        return False
    # Colors of 16 bits cannot be compared with pixels that Pillow has reduced to 8.
    return isinstance(color, bytes) or all(value <= 255 for value in tag_values(color))


def _eight_bit_gray(image: Image.Image) -> npt.NDArray[np.uint8]:
    transparent = image.info.get("transparency")
    is_inverted, white = _meaning_of_gray(image)
    gray = np.empty((image.height, image.width), np.uint8)
    for top, values in _blocks(image):
        rows = gray[top : top + len(values)]
        rows[:] = (values * 255 // white).clip(0, 255)
        if is_inverted:
            rows[:] = 255 - rows
        if isinstance(transparent, int):
            rows[values == transparent] = 255
    return gray


def float_gray(image: Image.Image) -> Image.Image:
    """Return 16-bit gray in [0, 1], as an image of mode "F"."""
    is_inverted, white = _meaning_of_gray(image)
    gray = np.empty((image.height, image.width), np.float32)
    for top, values in _blocks(image):
        rows = gray[top : top + len(values)]
        rows[:] = (values / white).clip(0, 1)
        if is_inverted:
            rows[:] = 1 - rows
    return Image.fromarray(gray)


def _meaning_of_gray(image: Image.Image) -> tuple[bool, int]:
    """Return whether 0 is white, and the largest value; Pillow inverts up to 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    white = WHITE.get(tag_values(tags.get(BITS, 16))[0], WHITE[16])
    return tags.get(PHOTOMETRIC) == 0, white


def _blocks(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield first row and values of some rows each: a copy of all would take 8 bytes per pixel."""
    for top in range(0, image.height, _BLOCK_ROWS):
        block = image.crop((0, top, image.width, min(top + _BLOCK_ROWS, image.height)))
        yield top, np.asarray(block).astype(np.int64)


def num_planes(image: Image.Image) -> int:
    """Return the number of channels of an opened image, of its page if it has several."""
    return 1 if image.mode in GRAY else BANDS.get(image.mode, 3)


def depth_problem(image: Image.Image) -> str | None:
    """Return what is wrong with the depth of an image, or None: no rule says what is white."""
    tags = getattr(image, "tag_v2", {})
    bits = "x".join(map(str, tag_values(tags.get(BITS, ()))))
    found = f"mode {image.mode}" + (f" of {bits} bits" if bits else "")
    is_signed = any(kind != 1 for kind in tag_values(tags.get(SAMPLE_FORMAT, ())))
    is_known = image.mode != "F" and not is_signed
    if image.mode == "I" and is_known:
        is_known = image.format in _KNOWN_AS_16_BITS
        if is_known:
            low, high = (int(value) for value in np.ravel(image.getextrema()))
            is_known, found = 0 <= low <= high <= WHITE[16], f"{found}, values {low} to {high}"
    if is_known:
        return None
    return f"must have 8 or 16 bits per channel, unsigned, got {found}; save it with 8 or 16 bits"
