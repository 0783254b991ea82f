"""Load paths, arrays, tensors and Pillow images as RGB images: the only reader of image files.

An image is what a viewer shows of its first frame: palettes, color models and 16 bits become 8-bit
RGB, and transparent pixels lie on white. Color profiles are not applied.
"""

import logging
import struct
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_LOGGER = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor
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
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WIDTH, _HEIGHT = 256, 257
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WHITE = {12: 4095, 16: 65535}  # largest value by bits
_KNOWN_AS_16_BITS = ("PNG", "PPM", None)  # formats of which mode I holds 16 bits; None: in memory


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


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image file of a known format as `PIL.Image.open`, without decoding it."""
    return Image.open(file, formats=_openable())


def read_photo(path: Path, *, exif: Exif = "upright") -> Image.Image:
    """Read an image file as RGB; warn if it has further pages.

    Args:
        path: path of the file.
        exif: whether to turn the pixels as the EXIF orientation says, or keep them as stored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, is truncated, or has more than 16 bits per channel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path} must exist, got no such file")
    return decode(path, f"image {path}", exif=exif, warns_of_pages=True)


def decode(
    file: Path | BinaryIO, what: str, *, exif: Exif, warns_of_pages: bool = False
) -> Image.Image:
    """Decode an image file as RGB.

    Args:
        file: path of the file, or an open one.
        what: name of the image in errors.
        exif: as for `read_photo`.
        warns_of_pages: log a warning if the file has several pages, of which the first is read.

    Raises:
        ValueError: the file does not exist, is not an image, is truncated, or has more than 16 bits
            per channel.
    """
    try:
        with open_image(file) as image:
            if warns_of_pages and num_pages(image) > 1:
                _LOGGER.warning("%s has %d pages; only the first is read", what, num_pages(image))
            problem = _depth_problem(image)
            if problem is None:
                return _to_photo(image, exif)
    except UNREADABLE as error:
        raise unreadable(what, error) from error
    raise ValueError(f"{what} {problem}")


def unreadable(what: str, error: Exception) -> ValueError:
    """Return the error for a file that cannot be read as an image."""
    reason: object = error
    if isinstance(error, UnidentifiedImageError):
        formats = ", ".join(_openable())
        reason = f"none of the formats {formats}; convert it to JPEG or PNG ({error})"
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
    """Return the number of pages of an opened TIFF file; 1 for other formats."""
    try:
        return getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    except UNREADABLE:  # a damaged further page
        return 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of the stored pixels of an opened file."""
    tags = getattr(image, "tag_v2", None)  # of TIFF, Pillow may give the upright size
    return (image.height, image.width) if tags is None else (tags[_HEIGHT], tags[_WIDTH])


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return (height, width) of an image turned upright."""
    return size[::-1] if orientation >= _SWAPPED else size


def header_depth_problem(image: Image.Image) -> str | None:
    """Return the problem of `decode` with the depth of an opened file, as far as its header tells.

    Mode I, of 32 bits, is judged by its pixels.
    """
    return None if image.mode == "I" else _depth_problem(image)


def _depth_problem(image: Image.Image) -> str | None:
    """Return what is wrong with the depth of an image, or None: no rule says what is white."""
    tags = getattr(image, "tag_v2", {})
    bits = "x".join(map(str, _values(tags.get(_BITS, ()))))
    found = f"mode {image.mode}" + (f" of {bits} bits" if bits else "")
    is_signed = any(kind != 1 for kind in _values(tags.get(_SAMPLE_FORMAT, ())))
    is_known = image.mode != "F" and not is_signed
    if image.mode == "I" and is_known:
        is_known = image.format in _KNOWN_AS_16_BITS
        if is_known:
            pixels = np.asarray(image)
            low, high = int(pixels.min()), int(pixels.max())
            is_known, found = 0 <= low <= high <= _WHITE[16], f"{found}, values {low} to {high}"
    if is_known:
        return None
    return f"must have 8 or 16 bits per channel, unsigned, got {found}; save it with 8 or 16 bits"


def _values(tag: Any) -> tuple[Any, ...]:
    return tag if isinstance(tag, tuple) else (tag,)


def _to_photo(image: Image.Image, exif: Exif) -> Image.Image:
    """Return a new RGB image without EXIF data, so that nobody turns it again."""
    orientation = orientation_of(image)
    image.load()
    is_turned = orientation != 1 and orientation_of(image) == 1  # Pillow turns TIFF
    photo = _to_rgb(image)
    if is_turned and exif == "stored":
        photo = photo.transpose(_TURNS[_INVERSE.get(orientation, orientation)])
    elif not is_turned and exif == "upright" and orientation != 1:
        photo = photo.transpose(_TURNS[orientation])
    photo.info.clear()
    return photo


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to a new RGB image."""
    if image.mode == "I" or image.mode in _SIXTEEN_BITS:
        return Image.fromarray(_eight_bit_gray(image)).convert("RGB")
    if image.mode in ("La", "RGBa"):  # colors multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA") or _has_transparent_color(image):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=alpha)
            return white
    return image.convert("RGB")


def _has_transparent_color(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return True
    color = image.info.get("transparency")
    if color is None or image.mode not in ("1", "L", "P", "RGB"):
        return False
    # Colors of 16 bits cannot be compared with pixels that Pillow has reduced to 8.
    return isinstance(color, bytes) or all(value <= 255 for value in _values(color))


def _eight_bit_gray(image: Image.Image) -> npt.NDArray[np.uint8]:
    tags = getattr(image, "tag_v2", {})
    white = _WHITE.get(_values(tags.get(_BITS, 16))[0], _WHITE[16])
    values = np.asarray(image).astype(np.int64)
    gray = (values * 255 // white).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white; Pillow inverts up to 8 bits only
        gray = 255 - gray
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return gray


def as_photo(image: ImageLike, *, exif: Exif = "upright") -> Image.Image:
    """Convert to an RGB image; an image that already is one is returned itself.

    Args:
        image: a path, a Pillow image of any mode, an array (height, width, 3) of uint8, or a
            tensor (3, height, width), uint8 or floating in [0, 1]. Channels are RGB.
        exif: as for `read_photo`; also of a Pillow image that has an EXIF orientation.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the image is none of these.
    """
    if isinstance(image, str | Path):
        return read_photo(Path(image), exif=exif)
    if isinstance(image, Image.Image):
        is_plain = image.mode == "RGB" and not _has_transparent_color(image)
        if is_plain and orientation_of(image) == 1:
            image.load()
            return image
        problem = _depth_problem(image)
        if problem is not None:
            raise ValueError(f"image {problem}")
        return _to_photo(image, exif)
    if isinstance(image, Tensor):
        return Image.fromarray(_tensor_pixels(image))
    return Image.fromarray(_array_pixels(image))


def _array_pixels(image: Any) -> npt.NDArray[np.uint8]:
    if not isinstance(image, np.ndarray):
        raise ValueError(
            "image must be a path, a Pillow image, an array or a tensor, "
            f"got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            "image array must be uint8 of shape (height, width, 3), "
            f"got {image.dtype} of shape {image.shape}"
        )
    return image


def _tensor_pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    is_float = image.is_floating_point()
    if (
        image.ndim != 3
        or image.shape[0] != 3
        or image.numel() == 0
        or not (is_float or image.dtype == torch.uint8)
    ):
        raise ValueError(
            "image tensor must be uint8 or floating, of shape (3, height, width), "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
    if is_float:
        low, high = (float(bound) for bound in image.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"floating image tensor must be in [0, 1], got [{low:g}, {high:g}]; "
                "do not normalize it, the detector does"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    pixels: npt.NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels
