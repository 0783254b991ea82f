"""Arrays and tensors as 8-bit pixels."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deformable_detr.pixels.limits import TooLargeImageError, require_pixels

Pixels = npt.NDArray[np.uint8]
_CHANNELS = (1, 3, 4)  # gray, RGB, RGB and alpha
_BLOCK = 2**20  # values that are converted at once
_TENSOR_KINDS = (torch.uint8, torch.uint16)
_KINDS = "uint8, uint16, or floating in [0, 1]"


def array_pixels(image: Any) -> Pixels:
    """Return the 8-bit pixels of an array: (height, width, channels), of 1, 3 or 4 channels.

    Args:
        image: an array (height, width), or (height, width, channels), of uint8, uint16, where 65535
            is white, or floating in [0, 1].

    Raises:
        ValueError: it is none, or has too many pixels; converted only after its size is checked.
    """
    shape = image.shape if image.ndim == 3 else (*image.shape, 1)
    is_known = image.dtype.kind == "f" or (image.dtype.kind == "u" and image.itemsize <= 2)
    if not is_known or len(shape) != 3 or shape[2] not in _CHANNELS or image.size == 0:
        raise ValueError(
            f"image array must be {_KINDS}, of shape (height, width), or (height, width, channels) "
            f"with 1, 3 or 4 channels, got {image.dtype} of shape {image.shape}"
        )
    _require_pixels("image array", shape[0], shape[1])
    return _eight_bit(np.asarray(image).reshape(shape), "array")


def tensor_pixels(image: Tensor) -> Pixels:
    """Return the 8-bit pixels of a tensor: (height, width, channels), of 1, 3 or 4 channels.

    Args:
        image: a tensor (height, width), or (channels, height, width), of types as for
            `array_pixels`.

    Raises:
        ValueError: as for `array_pixels`.
    """
    if image.is_nested:  # which has no shape
        raise ValueError("image tensor must be dense, got a nested one")
    shape = tuple(image.shape) if image.ndim == 3 else (1, *image.shape)
    is_known = image.dtype in _TENSOR_KINDS or image.is_floating_point()
    is_dense = image.layout == torch.strided and not image.is_meta
    is_image = len(shape) == 3 and shape[0] in _CHANNELS and image.numel() > 0
    if not (is_known and is_dense and is_image):
        raise ValueError(
            f"image tensor must be {_KINDS}, dense, of shape (height, width), or (channels, "
            "height, width) with 1, 3 or 4 channels, "
            f"got {image.dtype} of shape {tuple(image.shape)}"
        )
    _require_pixels("image tensor", shape[1], shape[2])
    values = image.detach().reshape(shape).permute(1, 2, 0).cpu()
    if image.is_floating_point():
        values = values.float()
    return _eight_bit(values.resolve_neg().numpy(), "tensor")


def _require_pixels(what: str, height: int, width: int) -> None:
    try:
        require_pixels(height, width)
    except TooLargeImageError as error:
        raise ValueError(f"{what} {error}") from None


def _eight_bit(values: npt.NDArray[Any], what: str) -> Pixels:
    """Convert (height, width, channels) block by block: copies of a large image would not fit."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    is_float = values.dtype.kind == "f"
    if is_float:
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"floating image {what} must be in [0, 1], got [{low:g}, {high:g}]; divide values "
                "of 0 to 255 by 255, and do not normalize, the detector does"
            )
    pixels = np.empty(values.shape, np.uint8)
    rows = max(_BLOCK // max(values[0].size, 1), 1)
    for top in range(0, len(values), rows):
        block = values[top : top + rows]
        if is_float:
            pixels[top : top + rows] = np.rint(block.astype(np.float32) * np.float32(255))
        else:
            pixels[top : top + rows] = block.astype(np.uint32) * 255 // 65535
    return pixels
