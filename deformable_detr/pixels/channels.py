"""Images of another number of channels than three."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOST_CHANNELS = 16
RGB = 3  # channels of images that are Pillow images
_WHITE = {"L": 255, "F": 1}  # largest value by mode


@dataclass(frozen=True)
class ChannelImage:
    """Image with one plane per channel; has what the transforms use of a Pillow image.

    Attributes:
        planes: 1 to 16 Pillow images of one size, all of mode "L", 8 bits, or all of mode "F", in
            [0, 1]. Resizing keeps 8 bits at 8 bits, as it does for RGB images, and other values
            at 32 bits.
    """

    planes: tuple[Image.Image, ...]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.planes[0].width

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.planes[0].height

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow has it."""
        return self.planes[0].size

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return len(self.planes) * self.width * self.height * (1 if self._mode == "L" else 4)

    @property
    def _mode(self) -> str:
        return self.planes[0].mode

    def split(self) -> tuple[Image.Image, ...]:
        """Return the planes."""
        return self.planes

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "ChannelImage":
        """Resize to (width, height)."""
        return self._each(lambda plane: plane.resize(size, resample))

    def crop(self, box: tuple[int, int, int, int]) -> "ChannelImage":
        """Crop to (left, top, right, bottom)."""
        return self._each(lambda plane: plane.crop(box))

    def transpose(self, method: Image.Transpose) -> "ChannelImage":
        """Flip or rotate."""
        return self._each(lambda plane: plane.transpose(method))

    def brightened(self, factor: float) -> "ChannelImage":
        """Multiply all values by a factor, and clip them."""
        return self._stretched(0.0, factor)

    def contrasted(self, factor: float) -> "ChannelImage":
        """Multiply the distance of all values to their mean by a factor, and clip them."""
        return self._stretched(
            float(np.mean([np.mean(np.asarray(plane)) for plane in self.planes])), factor
        )

    def values(self) -> Tensor:
        """Return a (channels, height, width) float32 tensor in [0, 1]."""
        planes = np.stack([np.asarray(plane) for plane in self.planes])
        pixels = torch.from_numpy(planes).float()
        return pixels.div_(_WHITE[self._mode]).clamp_(0, 1)  # resizing may round beyond

    def to_rgb(self) -> Image.Image:
        """Return the first three channels as an 8-bit RGB image; the first one, gray, of fewer."""
        if len(self.planes) < RGB:
            return _eight_bit(self.planes[0]).convert("RGB")
        return Image.merge("RGB", [_eight_bit(plane) for plane in self.planes[:RGB]])

    def _stretched(self, center: float, factor: float) -> "ChannelImage":
        def stretch(plane: Image.Image) -> Image.Image:
            values = (np.asarray(plane, np.float32) - center) * factor + center
            values = np.clip(values, 0, _WHITE[plane.mode]).astype(np.float32)
            if plane.mode == "L":
                return Image.fromarray(np.rint(values).astype(np.uint8))
            return Image.fromarray(values)

        return self._each(stretch)

    def _each(self, change: Callable[[Image.Image], Image.Image]) -> "ChannelImage":
        return ChannelImage(tuple(map(change, self.planes)))


AnyImage = Image.Image | ChannelImage
"""An RGB image, or an image of another number of channels."""


def to_rgb(image: AnyImage) -> Image.Image:
    """Return what is shown of an image; see `ChannelImage.to_rgb`."""
    return image.to_rgb() if isinstance(image, ChannelImage) else image


def _eight_bit(plane: Image.Image) -> Image.Image:
    if plane.mode == "L":
        return plane
    values = np.rint(np.clip(np.asarray(plane), 0, 1) * np.float32(255))
    return Image.fromarray(values.astype(np.uint8))
