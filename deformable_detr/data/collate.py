"""Collate a list of samples into a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from deformable_detr.structures import ImageBatch, Target


@dataclass(frozen=True)
class Batch:
    """Batch of N images and their N targets, as yielded by the loader."""

    images: ImageBatch
    targets: tuple[Target, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return a copy on `device`."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            tuple(target.to(device, non_blocking=non_blocking) for target in self.targets),
        )

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory; called by the loader."""
        return Batch(
            self.images.pin_memory(), tuple(target.pin_memory() for target in self.targets)
        )


def collate(
    samples: Sequence[tuple[Tensor, Target]], *, max_padded_pixels: int | None = None
) -> Batch:
    """Pad the images to a common size; targets stay relative to the unpadded image.

    Args:
        samples: (channels, h, w) images and their targets.
        max_padded_pixels: maximum number of pixels per batch, padding included; a larger batch
            has all its images shrunk by one common factor. None for no limit.
    """
    images = [image for image, _ in samples]
    targets = tuple(target for _, target in samples)
    if max_padded_pixels is not None:
        images = _shrink(images, max_padded_pixels)
    return Batch(ImageBatch.from_images(images), targets)


def _shrink(images: list[Tensor], max_padded_pixels: int) -> list[Tensor]:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    factor = math.sqrt(max_padded_pixels / (len(images) * height * width))
    if factor >= 1:
        return images
    sizes = [[max(int(factor * side), 1) for side in image.shape[1:]] for image in images]
    return [TF.resize(image, size) for image, size in zip(images, sizes, strict=True)]
