"""Images in .npy files: arrays (height, width), or (height, width, channels)."""

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from deformable_detr.messages import in_brief
from deformable_detr.pixels.channels import MOST_CHANNELS, ChannelImage
from deformable_detr.pixels.limits import RefusedImageError, require_pixels

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_KINDS = "uint8, uint16, or floating in [0, 1]"
_KEPT = 4  # bytes of a value as it is kept
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """Header of a .npy file that is an image.

    Attributes:
        shape: (height, width, channels).
        is_whole: whether the file holds all values.
    """

    shape: tuple[int, int, int]
    is_whole: bool


def is_npy(file: BinaryIO) -> bool:
    """Return whether an open file starts as a .npy file does."""
    file.seek(0)
    found = file.read(len(_MAGIC)) == _MAGIC
    file.seek(0)
    return found


def read_npy_header(file: BinaryIO) -> NpyHeader:
    """Read the header, and check that it is that of an image within the limits.

    Raises:
        RefusedImageError: it is another array, or has too many pixels.
        ValueError: the header is damaged.
    """
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"version {version} of the format; save it with numpy.save")
    shape, _, dtype = _READERS[version](file)
    require_image_array(dtype, shape)
    height, width, channels = (*shape, 1)[:3]
    require_pixels(height, width, channels=channels, each=dtype.itemsize + _KEPT)
    end = file.tell() + math.prod(shape) * dtype.itemsize
    return NpyHeader((height, width, channels), file.seek(0, os.SEEK_END) >= end)


def require_image_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Raise a `RefusedImageError` unless an array may be an image, by its type and shape."""
    is_known = dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)
    is_image = len(shape) in (2, 3) and min(shape) > 0 and (*shape, 1)[2] <= MOST_CHANNELS
    if not (is_known and is_image):
        raise RefusedImageError(
            f"must be an array of {_KINDS}, of shape (height, width), or (height, width, channels) "
            f"with 1 to {MOST_CHANNELS} channels, got {in_brief(str(dtype))} of shape "
            f"{in_brief(shape)}"
        )


def read_npy(file: BinaryIO) -> npt.NDArray[Any]:
    """Read an image as an array (height, width, channels).

    Raises:
        RefusedImageError: as for `read_npy_header`, or a value is out of range.
        ValueError: the file is truncated.
    """
    header = read_npy_header(file)
    if not header.is_whole:
        raise ValueError("the file is truncated")
    file.seek(0)
    values: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    values = values.reshape(header.shape)
    require_values_in_range(values)
    return values


def require_values_in_range(values: npt.NDArray[Any]) -> None:
    """Raise a `RefusedImageError` if floating values are not in [0, 1]."""
    if values.dtype.kind != "f":
        return
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise RefusedImageError(
            f"must have floating values in [0, 1], got [{low:g}, {high:g}]; divide them by the "
            "largest value that the sensor can give, and replace those that are not finite"
        )


def image_of_array(values: npt.NDArray[Any]) -> ChannelImage:
    """Make an image of an array (height, width, channels) that the checks above have passed."""
    planes = (values[:, :, at] for at in range(values.shape[2]))
    if values.dtype == np.uint8:
        return ChannelImage(tuple(Image.fromarray(np.ascontiguousarray(one)) for one in planes))
    white = np.float32(65535 if values.dtype.kind == "u" else 1)
    return ChannelImage(tuple(Image.fromarray(one.astype(np.float32) / white) for one in planes))
