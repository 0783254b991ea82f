"""Load paths, arrays, tensors and Pillow images as RGB images: the only reader of image files.

An image is what a viewer shows of its first frame: palettes, color models and 16 bits become 8-bit
RGB, and transparent pixels lie on white. Color profiles are not applied. `pixels.limits` bounds
what a file may ask for, before it is decoded.
"""

import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from deformable_detr.files import require_regular_file
from deformable_detr.messages import shown
from deformable_detr.pixels.arrays import array_pixels, tensor_pixels
from deformable_detr.pixels.channels import ChannelImage
from deformable_detr.pixels.limits import (
    MAX_PIXELS_VARIABLE,
    MOST_PAGES,
    RefusedImageError,
    count_pages,
    max_pixels,
    pillow_limit,
    require_few_scans,
    require_pixels,
)
from deformable_detr.pixels.modes import (
    BANDS,
    GRAY,
    convert_to_rgb,
    depth_problem,
    float_gray,
    has_transparent_color,
)

_LOGGER = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image | npt.NDArray[Any] | Tensor | ChannelImage
Exif = Literal["upright", "stored"]
"""Which pixels of a file are meant: turned as its EXIF orientation says, or as stored."""

# Exceptions of Pillow for files that are no image, corrupt, truncated or too large.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
# Formats of still images that are decoded in this process: Pillow renders EPS by another program.
_FORMATS = {"AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM"}
_FORMATS |= {"QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"}
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
_ORIENTATION = 0x0112  # an EXIF tag
_SWAPPED = 5  # orientations from this one on exchange width and height
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the other turns are their own inverse
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_CHECKED_BY_PILLOW = ("GIF", "WEBP")  # which allocate pixels as they are opened


@cache
def _openable() -> tuple[str, ...]:
    Image.init()
    return tuple(sorted(_FORMATS & Image.OPEN.keys()))


@cache
def photo_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of all formats of images that can be read."""
    readable = {*_openable(), "MPO"}  # which Pillow opens as JPEG
    suffixes = Image.registered_extensions().items()
    return tuple(sorted(suffix for suffix, kind in suffixes if kind in readable))


@contextmanager
def open_image(file: Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file of a known format, without decoding it.

    Args:
        file: path of a file, or an open one, which stays open.

    Raises:
        TooLargeImageError: it has more pixels than `max_pixels`, or too many scans.
        OSError, SyntaxError, ValueError, ...: see `UNREADABLE`.
    """
    if isinstance(file, Path):
        with open_regular(file) as opened, _open_known(opened) as image:
            yield image
    else:
        with _open_known(file) as image:
            yield image


@contextmanager
def _open_known(file: BinaryIO) -> Iterator[Image.Image]:
    """Open a file of a known format and within the limits."""
    with _identify(file) as image:
        require_page_within_limits(image)
        if image.format in ("JPEG", "MPO"):
            require_few_scans(file)
        yield image


def require_page_within_limits(image: Image.Image) -> None:
    """Raise unless the page of an opened image that was sought, and its tiles, are in the limits.

    Raises:
        TooLargeImageError: it has more pixels than `max_pixels`.
    """
    for height, width in (stored_size(image), *_tile_sizes(image)):
        require_pixels(height, width, image.format)


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is not a pipe or a device, of which reading may never end."""

    def open_without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    require_regular_file(path, "image")
    with open(path, "rb", opener=open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # replaced in between
            raise ValueError("no regular file")
        if status.st_size == 0:  # or a file of the kernel, which may be endless
            raise ValueError("an empty file")
        yield file


def _identify(file: BinaryIO) -> Image.Image:
    """Open as `PIL.Image.open`, whose limit of pixels and its warning are not ours."""
    file.seek(0)
    start = file.read(16)
    for kind in _openable():
        factory, accepts = Image.OPEN[kind]
        accepted = True if accepts is None else accepts(start)
        if isinstance(accepted, str) or not accepted:  # a text says why not
            continue
        file.seek(0)
        try:
            if kind in _CHECKED_BY_PILLOW:
                with pillow_limit():
                    return factory(file, "")
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    raise UnidentifiedImageError


def read_photo(path: Path, *, exif: Exif = "upright") -> Image.Image:
    """Read an image file as RGB; warn if it has further pages.

    Args:
        path: path of the file.
        exif: whether to turn the pixels as the EXIF orientation says, or keep them as stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, no image, truncated, or has more pixels than `max_pixels`
            or more than 16 bits per channel.
    """
    require_regular_file(path, "image")
    return decode(path, f"image {shown(path)}", exif=exif, warns_of_pages=True)


def decode(
    file: Path | BinaryIO, what: str, *, exif: Exif, warns_of_pages: bool = False
) -> Image.Image:
    """Decode an image file as RGB.

    Args:
        file: path of the file, or an open one.
        what: name of the image in errors.
        exif: as for `read_photo`.
        warns_of_pages: log a warning if a TIFF file has several pages, of which the first is read.
            Frames of animations are one image, of which the first shows the state at the start.

    Raises:
        ValueError: the file does not exist, is not an image, is truncated, or has more than 16 bits
            per channel.
    """
    try:
        with open_image(file) as image:
            if warns_of_pages and (pages := num_pages(image)) > 1:
                number = f"more than {MOST_PAGES}" if pages > MOST_PAGES else pages
                _LOGGER.warning("%s has %s pages; only the first is read", what, number)
            problem = depth_problem(image)
            if problem is None:
                return _to_photo(image, exif)
    except UNREADABLE as error:
        raise unreadable(what, error) from error
    raise ValueError(f"{what} {problem}")


def unreadable(what: str, error: Exception) -> ValueError:
    """Return the error for a file that cannot be read as an image."""
    if isinstance(error, RefusedImageError):
        return ValueError(f"{what} {error}")
    reason = shown(error)
    if isinstance(error, UnidentifiedImageError):
        formats = ", ".join(_openable())
        reason = f"none of the formats {formats}; convert it to JPEG or PNG"
    elif isinstance(error, Image.DecompressionBombError):
        return ValueError(
            f"{what} must have at most {max_pixels()} pixels, got more than twice as many; cut or "
            f"reduce it, or set the environment variable {MAX_PIXELS_VARIABLE} to more"
        )
    return ValueError(f"{what} must be a readable image, got: {reason}")


def orientation_of(image: Image.Image, *, may_decode: bool = True) -> int:
    """Return the EXIF orientation, in 1..8; 1, upright, if there is none or it is damaged.

    Args:
        image: an opened image. Of a TIFF file, Pillow turns the pixels as it loads them.
        may_decode: False leaves out EXIF data behind the pixels of a PNG file, which is found by
            decoding only.
    """
    try:
        exif = image.getexif() if may_decode else Image.Image.getexif(image)
        value = exif.get(_ORIENTATION)
    except UNREADABLE:  # the pixels may be sound
        return 1
    return int(value) if value in _TURNS else 1


def num_pages(image: Image.Image) -> int:
    """Return the number of pages of an opened TIFF file, at most `MOST_PAGES` + 1; else 1."""
    file = getattr(image, "fp", None)
    if image.format != "TIFF" or file is None:
        return 1
    return count_pages(file)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the stored pixels of an opened file."""
    tags = getattr(image, "tag_v2", None)  # of TIFF, Pillow may give the upright size
    return (image.height, image.width) if tags is None else (tags[_HEIGHT], tags[_WIDTH])


def _tile_sizes(image: Image.Image) -> list[tuple[int, int]]:
    """Return (height, width) of the tiles of an opened TIFF file; each is decoded whole."""
    tags = getattr(image, "tag_v2", {})
    return [(tags[_TILE_HEIGHT], tags[_TILE_WIDTH])] if _TILE_WIDTH in tags else []


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return (height, width) of an image turned upright."""
    return size[::-1] if orientation >= _SWAPPED else size


def header_depth_problem(image: Image.Image) -> str | None:
    """Return the problem of `decode` with the depth of an opened file, as far as its header tells.

    Mode I, of 32 bits, is judged by its pixels.
    """
    return None if image.mode == "I" else depth_problem(image)


def _to_photo(image: Image.Image, exif: Exif) -> Image.Image:
    """Return a new RGB image without EXIF data, so that nobody turns it again."""
    turn = _load_and_turn(image, exif)
    if turn is not None and image.mode == "RGB" and not has_transparent_color(image):
        photo = image.transpose(turn)  # without another copy
    else:
        photo = convert_to_rgb(image)
        photo = photo if turn is None else photo.transpose(turn)
    photo.info.clear()
    return photo


def to_planes(image: Image.Image, exif: Exif) -> tuple[Image.Image, ...]:
    """Decode an opened image, or the page of it that was sought, without mixing its channels.

    Returns:
        One "L" plane per channel, `num_planes` of them; of 16-bit gray, an "F" plane in [0, 1].

    Raises:
        RefusedImageError: the depth of its pixels is unknown.
        OSError, SyntaxError, ValueError, ...: see `UNREADABLE`.
    """
    if problem := depth_problem(image):
        raise RefusedImageError(problem)
    turn = _load_and_turn(image, exif)
    planes: tuple[Image.Image, ...]
    if image.mode in GRAY:
        planes = (image.convert("L") if image.mode in ("1", "L") else float_gray(image),)
    else:
        planes = (image if image.mode in BANDS else image.convert("RGB")).split()
    return tuple(plane.copy() if turn is None else plane.transpose(turn) for plane in planes)


def _load_and_turn(image: Image.Image, exif: Exif) -> Image.Transpose | None:
    """Decode the pixels; return what is still to be done to turn them as `exif` says."""
    orientation = orientation_of(image)
    _load(image)
    is_turned = orientation != 1 and orientation_of(image) == 1  # Pillow turns TIFF
    if is_turned and exif == "stored":
        return _TURNS[_INVERSE.get(orientation, orientation)]
    if not is_turned and exif == "upright" and orientation != 1:
        return _TURNS[orientation]
    return None


def _load(image: Image.Image) -> None:
    """Decode the pixels; Pillow compares those of TIFF with its limit once more."""
    if image.format == "TIFF" and image.height * image.width > (Image.MAX_IMAGE_PIXELS or 0):
        with pillow_limit():
            image.load()
    else:
        image.load()


def as_photo(image: ImageLike, *, exif: Exif = "upright") -> Image.Image:
    """Convert to an RGB image; an image that already is one is returned itself.

    Args:
        image: a path; a Pillow image of any mode; an array (height, width), or (height, width,
            channels); or a tensor (height, width), or (channels, height, width). Arrays and tensors
            are uint8, uint16, where 65535 is white, or floating in [0, 1]; channels are gray, RGB,
            or RGB and alpha.
        exif: as for `read_photo`; also of a Pillow image that has an EXIF orientation.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the image is none of these, or has more pixels than
            `deformable_detr.pixels.limits.max_pixels`.
    """
    if isinstance(image, str | Path):
        if image == "":
            raise ValueError("image must be a path, got an empty text")
        return read_photo(Path(image), exif=exif)
    if isinstance(image, Image.Image):
        return _pillow_photo(image, exif)
    if isinstance(image, Tensor):
        pixels = tensor_pixels(image)
    elif isinstance(image, np.ndarray):
        pixels = array_pixels(image)
    else:
        raise ValueError(
            "image must be a path, a Pillow image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    photo = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return photo if photo.mode == "RGB" else convert_to_rgb(photo)


def _pillow_photo(image: Image.Image, exif: Exif) -> Image.Image:
    try:
        require_pixels(image.height, image.width, image.format)
        is_plain = image.mode == "RGB" and not has_transparent_color(image)
        if is_plain and orientation_of(image) == 1:
            _load(image)
            return image
        problem = depth_problem(image)
        if problem is None:
            return _to_photo(image, exif)
    except UNREADABLE as error:
        raise unreadable("image", error) from error
    raise ValueError(f"image {problem}")
