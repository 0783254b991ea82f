"""Images of 1 to 16 channels, from files and from memory.

Three channels are an RGB image, as `deformable_detr.photos` reads it. Any other number is a
`ChannelImage`: of a .npy file, of the channels of an image file, or of all pages of a TIFF file,
one after the other. One channel is the gray value of any image file of one page.
"""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from deformable_detr.files import require_regular_file
from deformable_detr.messages import shown
from deformable_detr.photos import (
    UNREADABLE,
    Exif,
    ImageLike,
    as_photo,
    decode,
    num_pages,
    open_image,
    open_regular,
    orientation_of,
    read_photo,
    require_page_within_limits,
    stored_size,
    to_planes,
    unreadable,
)
from deformable_detr.pixels.channels import MOST_CHANNELS, RGB, AnyImage, ChannelImage
from deformable_detr.pixels.limits import RefusedImageError, require_pixels
from deformable_detr.pixels.modes import num_planes
from deformable_detr.pixels.npy import (
    image_of_array,
    is_npy,
    read_npy,
    require_image_array,
    require_values_in_range,
)

NPY = "NPY"  # the name of a format, as Pillow has names
UPRIGHT = 1  # an EXIF orientation
SETTING = "model.backbone.in_channels"


def read_image(path: Path, *, exif: Exif = "upright", channels: int = RGB) -> AnyImage:
    """Read an image file with the given number of channels; of three, see `read_photo`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `decode_image`.
    """
    require_regular_file(path, "image")
    if channels == RGB and not _is_npy(path):
        return read_photo(path, exif=exif)
    return decode_image(path, f"image {shown(path)}", exif=exif, channels=channels)


def decode_image(file: Path, what: str, *, exif: Exif, channels: int = RGB) -> AnyImage:
    """Decode an image file with the given number of channels.

    Args:
        file: path of the file.
        what: name of the image in errors.
        exif: as for `read_photo`.
        channels: number of channels, 1 to 16.

    Raises:
        ValueError: the file is no image, is truncated or too large, or has another number of
            channels or values that are refused.
    """
    try:
        with open_regular(file) as opened:
            if is_npy(opened):
                return _from_npy(opened, channels)
        if channels != RGB:
            with open_image(file) as image:
                return _from_opened(image, exif, channels)
    except UNREADABLE as error:
        raise unreadable(what, error) from error
    return decode(file, what, exif=exif)


def as_image(image: ImageLike, *, exif: Exif = "upright", channels: int = RGB) -> AnyImage:
    """Convert to an image of the given number of channels; of three, see `as_photo`.

    Args:
        image: a path or a Pillow image, read as a file is; an array (height, width), or (height,
            width, channels); a tensor (height, width), or (channels, height, width); or a
            `ChannelImage`. Types and ranges of values are those of `as_photo`.
        exif: as for `as_photo`.
        channels: number of channels, 1 to 16.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the image has another number of channels, or is none of these.
    """
    if isinstance(image, str | Path) and image != "":
        return read_image(Path(image), exif=exif, channels=channels)
    if isinstance(image, ChannelImage):
        _require(len(image.planes), channels, "in memory", "image ")
        return image
    if channels == RGB or not isinstance(image, Image.Image | np.ndarray | Tensor):
        return as_photo(image, exif=exif)
    try:
        if isinstance(image, Image.Image):
            return _from_opened(image, exif, channels)
        return _from_array(_as_array(image), channels)
    except UNREADABLE as error:
        what = "image" if isinstance(image, Image.Image) else f"image {_kind(image)}"
        raise unreadable(what, error) from error


def require_readable_as(kind: str, planes: int, pages: int, channels: int) -> None:
    """Raise a `RefusedImageError` if a file cannot be read with a number of channels.

    Args:
        kind: name of its format.
        planes: channels of its first page.
        pages: number of pages of a TIFF file; else 1.
        channels: number of channels wanted.
    """
    if kind != NPY and (channels == RGB or (channels == 1 and pages == 1)):
        return
    detail = f"{pages} pages of {planes}" if pages > 1 else f"{kind}, one page"
    detail = "the last dimension of its array" if kind == NPY else detail
    _require(planes * pages, channels, detail)


def require_equal_pages(image: Image.Image, pages: int) -> None:
    """Raise a `RefusedImageError` unless all pages of an opened file have one size and mode."""
    first = _describe_page(image)
    for page in range(1, pages):
        image.seek(page)
        require_page_within_limits(image)
        if (found := _describe_page(image)) != first:
            raise RefusedImageError(
                f"must have pages of one size and mode, got {first} on page 1 and {found} on page "
                f"{page + 1}; save it as .npy of shape (height, width, channels)"
            )
    image.seek(0)


def _describe_page(image: Image.Image) -> str:
    height, width = stored_size(image)
    orientation = orientation_of(image)
    turned = "" if orientation == UPRIGHT else f", orientation {orientation}"
    return f"{height} x {width} (height x width), mode {image.mode}{turned}"


def _from_npy(file: BinaryIO, channels: int) -> AnyImage:
    values = read_npy(file)
    require_readable_as(NPY, values.shape[2], 1, channels)
    return as_photo(values) if channels == RGB else image_of_array(values)


def _from_array(values: npt.NDArray[Any], channels: int) -> AnyImage:
    require_image_array(values.dtype, values.shape)
    values = values.reshape((*values.shape, 1)[:3])
    _require(values.shape[2], channels, "in memory")
    require_pixels(values.shape[0], values.shape[1], channels=channels)
    require_values_in_range(values)
    return image_of_array(values)


def _from_opened(image: Image.Image, exif: Exif, channels: int) -> ChannelImage:
    pages = min(num_pages(image), MOST_CHANNELS + 1)
    require_readable_as(image.format or "in memory", num_planes(image), pages, channels)
    height, width = stored_size(image)
    require_pixels(height, width, image.format, channels=channels)
    if channels == 1 and (image.mode in ("1", "L") or num_planes(image) > 1):
        return ChannelImage((as_photo(image, exif=exif).convert("L"),))
    if pages == 1:
        return ChannelImage(to_planes(image, exif))
    require_equal_pages(image, pages)
    planes: list[Image.Image] = []
    for page in range(pages):
        image.seek(page)
        planes += to_planes(image, exif)
    return ChannelImage(tuple(planes))


def _as_array(image: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    """Return a tensor (height, width), or (channels, height, width), as an array."""
    if not isinstance(image, Tensor):
        return np.asarray(image)
    if image.is_nested or image.is_sparse or image.is_meta:
        raise RefusedImageError(f"must be dense, got {image.layout} on {image.device}")
    values = image.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return (values.permute(1, 2, 0) if values.ndim == 3 else values).resolve_neg().numpy()


def _kind(image: npt.NDArray[Any] | Tensor) -> str:
    return "tensor" if isinstance(image, Tensor) else "array"


def _require(found: int, channels: int, detail: str, of: str = "") -> None:
    if found != channels:
        counted = "1 channel" if channels == 1 else f"{channels} channels"
        raise RefusedImageError(
            f"{of}must have {counted}, as {SETTING} says, got {found} ({detail}); save it as .npy "
            f"of shape (height, width, {channels}), or train with {SETTING}={found}"
        )


def _is_npy(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return is_npy(file)
    except UNREADABLE:
        return False
