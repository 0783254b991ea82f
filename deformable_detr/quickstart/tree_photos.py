"""Aerial images of the default dataset, with their tree crowns, as shipped by DeepForest.

Weinstein et al., 2020; taken by the National Ecological Observatory Network, 0.1 m per pixel.
"""

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deformable_detr.quickstart.wheels import PinnedWheel

WHEEL = PinnedWheel(
    requirement="deepforest==2.1.0",
    file_name="deepforest-2.1.0-py3-none-any.whl",
    sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    members={
        "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.png": (
            "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767"
        ),
        "deepforest/data/2019_YELL_2_528000_4978000_image_crop2.xml": (
            "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11"
        ),
        "deepforest/data/2019_YELL_2_541000_4977000_image_crop.png": (
            "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131"
        ),
        "deepforest/data/2019_YELL_2_541000_4977000_image_crop.xml": (
            "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631"
        ),
        "deepforest/data/OSBS_029.png": (
            "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee"
        ),
        "deepforest/data/OSBS_029.xml": (
            "1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c"
        ),
        "deepforest/data/SOAP_061.png": (
            "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424"
        ),
        "deepforest/data/SOAP_061.xml": (
            "4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c"
        ),
    },
)
TRAIN_PHOTO = "2019_YELL_2_528000_4978000_image_crop2"
VAL_PHOTO = "2019_YELL_2_541000_4977000_image_crop"
OTHER_SITE_PHOTOS = ("OSBS_029", "SOAP_061")


class Window(NamedTuple):
    """Part of an image in pixels: left and top inclusive, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top


@dataclass(frozen=True)
class TreePhoto:
    """Aerial image with annotated tree crowns.

    Attributes:
        name: file name without extension.
        pixels: (H, W, 3) uint8 RGB.
        boxes: crowns as windows of the image.
    """

    name: str
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    boxes: tuple[Window, ...]

    @property
    def window(self) -> Window:
        """Window of the full image."""
        return Window(0, 0, self.pixels.shape[1], self.pixels.shape[0])


def read_photo(name: str, contents: Mapping[str, bytes]) -> TreePhoto:
    """Read the image of that name from the wheel's members by path."""
    from deformable_detr.photos import decode  # here, since it imports PyTorch

    file = io.BytesIO(contents[f"deepforest/data/{name}.png"])
    pixels = np.asarray(decode(file, f"image {name}", exif="stored"))
    root = ElementTree.fromstring(contents[f"deepforest/data/{name}.xml"])
    boxes = []
    for box in root.iterfind("object/bndbox"):
        left, top, right, bottom = (
            int(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        # Pascal VOC counts pixels from 1 and includes the last one, so only the first two change.
        boxes.append(Window(left - 1, top - 1, right, bottom))
    return TreePhoto(name, pixels, tuple(boxes))
