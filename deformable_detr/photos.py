"""Load paths, arrays, tensors and Pillow images as upright RGB images."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor

# Exceptions of Pillow for files that are no image, corrupt, truncated or too large.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_ORIENTATION, _UPRIGHT = 0x0112, 1  # an EXIF tag, and its usual value
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of 16-bit grayscale images
_TO_EIGHT_BITS = 257  # 65535 / 255


def read_photo(path: Path) -> Image.Image:
    """Read an image file as RGB, with its EXIF orientation applied.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an image, or is truncated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image {path} must exist, got no such file")
    return decode(path, f"image {path}", upright=True)


def decode(file: Path, what: str, *, upright: bool) -> Image.Image:
    """Decode an image file as RGB.

    Args:
        file: path of the file.
        what: name of the image in errors.
        upright: apply the EXIF orientation; else keep the pixels as stored.

    Raises:
        ValueError: the file does not exist, is not an image, or is truncated.
    """
    try:
        with Image.open(file) as image:
            return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except UNREADABLE as error:
        raise ValueError(f"{what} must be a readable image, got: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; the EXIF orientation is not applied.

    16-bit gray values are scaled to 8 bits; transparency is ignored.
    """
    if image.mode in _SIXTEEN_BITS:
        gray = np.asarray(image).astype(np.int64) // _TO_EIGHT_BITS
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # its transparency may be of a kind that only RGBA can hold
        image = image.convert("RGBA")
    return image.convert("RGB")


def as_photo(image: ImageLike) -> Image.Image:
    """Convert to an upright RGB image; an image that already is one is returned itself.

    Args:
        image: a path, a Pillow image of any mode, an array (height, width, 3) of uint8, or a
            tensor (3, height, width), uint8 or floating in [0, 1]. Channels are RGB.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the image is none of these.
    """
    if isinstance(image, str | Path):
        return read_photo(Path(image))
    if isinstance(image, Image.Image):
        image.load()
        if image.mode == "RGB" and image.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT:
            return image
        return to_rgb(ImageOps.exif_transpose(image))
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
