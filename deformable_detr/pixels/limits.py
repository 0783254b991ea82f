"""Limits of images, checked by their headers before anything is decoded."""

import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from PIL import Image

from deformable_detr.messages import in_brief

MAX_PIXELS_VARIABLE = "DEFORMABLE_DETR_MAX_PIXELS"
# Decoding takes up to 16 bytes per pixel: 1 GiB, beside 0.75 GiB of an imported PyTorch.
DEFAULT_MAX_PIXELS = 2**26
# Formats of which a pixel takes this many times the memory of others, while it is decoded.
_COST = {"JPEG2000": 4, "AVIF": 2}
_BYTES = 16  # per pixel, that decoding takes
MOST_SCANS = 64  # of a JPEG file, each of which passes over all pixels; encoders write up to 13
MOST_PAGES = 1000  # that are counted
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_LOCK = threading.Lock()
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


class RefusedImageError(ValueError):
    """Error for an image that is refused; the text follows its name: "must be ..., got ..."."""


class TooLargeImageError(RefusedImageError):
    """Error for an image that asks for more than the limits."""


def max_pixels() -> int:
    """Return the largest number of pixels of an image: of the environment variable, or 2**26.

    Raises:
        ValueError: the variable is not a positive integer.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return DEFAULT_MAX_PIXELS
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise ValueError(
            f"environment variable {MAX_PIXELS_VARIABLE} must be a positive integer, "
            f"got {in_brief(text)}"
        )
    return int(text)


def require_pixels(
    height: int, width: int, kind: str | None = None, *, channels: int = 3, each: int = 4
) -> None:
    """Raise unless an image has at least one pixel, and at most `max_pixels`.

    Args:
        height: number of rows.
        width: number of columns.
        kind: Pillow's name of the file's format; None for an image in memory. JPEG 2000 and AVIF
            may have a quarter and a half of the pixels.
        channels: number of channels that are kept.
        each: bytes that a channel of a pixel takes; above 16 bytes in all, an image may have fewer
            pixels in proportion.

    Raises:
        TooLargeImageError: there are more pixels.
        ValueError: there are none, or the environment variable is wrong.
    """
    if height < 1 or width < 1:
        raise ValueError(f"{height} x {width} pixels (height x width)")
    limit, cost = max_pixels(), _COST.get(kind or "", 1)
    of = f" of a {kind} file" if cost > 1 else ""
    if channels * each > _BYTES:
        cost, of = cost * -(-channels * each // _BYTES), f"{of} of {channels} channels"
    if height * width * cost > limit:
        raise TooLargeImageError(
            f"must have at most {limit // cost} pixels{of}, got {height} x {width} (height x "
            f"width); cut or reduce it, or set the environment variable {MAX_PIXELS_VARIABLE} to "
            f"{height * width * cost} or more"
        )


@contextmanager
def pillow_limit() -> Iterator[None]:
    """Replace the limit of Pillow by ours, for a moment: there is one for the whole process."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        former, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels()
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = former


def require_few_scans(file: BinaryIO) -> None:
    """Raise if a JPEG file has more than `MOST_SCANS` scans: 60 bytes can cost a tenth of a second.

    Raises:
        TooLargeImageError: it has more.
    """
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    # What follows the image, such as a video, may hold the same bytes by chance.
    if data.count(bytes((0xFF, _START_OF_SCAN))) > MOST_SCANS and _num_scans(data) > MOST_SCANS:
        raise TooLargeImageError(
            f"must have at most {MOST_SCANS} scans, as JPEG files of encoders do, got more; "
            "save it again"
        )


def _num_scans(data: bytes) -> int:
    """Return the number of scans of the first image of a JPEG file."""
    count, position = 0, 2
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            break
        count += marker == _START_OF_SCAN
        if marker not in _WITHOUT_LENGTH:
            position += max(int.from_bytes(data[position : position + 2], "big"), 2)
    return count


def count_pages(file: BinaryIO) -> int:
    """Return the number of pages of a TIFF file, counted up to `MOST_PAGES` + 1.

    Pillow counts all of them, in a time that grows with the square of their number.
    """
    position = file.tell()
    file.seek(0)
    head = file.read(16)
    order = ">" if head[:2] == b"MM" else "<"
    is_big = head[2:4] in (b"\x2b\0", b"\0\x2b")
    number, entry, offset = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    places: set[int] = set()
    with suppress(struct.error, OverflowError, OSError, ValueError):  # a damaged page
        (place,) = struct.unpack_from(order + offset, head, 8 if is_big else 4)
        while place and place not in places and len(places) <= MOST_PAGES:
            places.add(place)
            file.seek(place)
            (entries,) = struct.unpack(order + number, file.read(struct.calcsize(number)))
            file.seek(place + struct.calcsize(number) + entries * entry)
            (place,) = struct.unpack(order + offset, file.read(struct.calcsize(offset)))
    file.seek(position)
    return max(len(places), 1)
