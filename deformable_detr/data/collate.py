"""A list of samples becomes a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deformable_detr.structures import ImageBatch, Target


@dataclass(frozen=True)
class Batch:
    """What the loader yields: N images and their N targets."""

    images: ImageBatch
    targets: tuple[Target, ...]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """A copy on `device`."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            tuple(target.to(device, non_blocking=non_blocking) for target in self.targets),
        )

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; the loader calls it."""
        return Batch(
            self.images.pin_memory(), tuple(target.pin_memory() for target in self.targets)
        )


def collate(samples: Sequence[tuple[Tensor, Target]]) -> Batch:
    """Pad the images to one size; the targets stay relative to the image without padding."""
    images, targets = zip(*samples, strict=True)
    return Batch(ImageBatch.from_images(images), targets)
