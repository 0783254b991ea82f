"""What the padding of a batch does to a detector, cause by cause; it is part of the official model.

Run on a checkpoint: `padding_effects(Detector.from_checkpoint(...).model, image, (H, W))`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import ImageBatch, Predictions, Size


@dataclass(frozen=True)
class PaddingEffects:
    """Changes from an image alone to the same image padded.

    Attributes:
        convolutions: change of the backbone's maps, whose borders see zeros instead of the edge;
            root mean square, as a share of the map's own, the largest of the levels.
        group_norm: change of the neck's maps, from the same features, whose statistics include
            the padding; in the same unit.
        mask_rounding: cells by which a level's valid part is longer or shorter than the image's
            share of it; the largest of the levels and axes.
        alone: the last layer's predictions for the image alone.
        padded: the same with padding.
    """

    convolutions: float
    group_norm: float
    mask_rounding: float
    alone: Predictions
    padded: Predictions


@torch.no_grad()
def padding_effects(detector: DeformableDETR, image: Tensor, size: Size) -> PaddingEffects:
    """Measure them for a normalised (3, h, w) image padded to `size`, (height, width)."""
    detector.eval()
    alone, padded = ImageBatch.from_images([image]), _pad(image, size)
    own, wide = detector.backbone(alone.images), detector.backbone(padded.images)
    same = [_fill(features, other.shape[2:]) for features, other in zip(own, wide, strict=True)]
    pyramid = detector.neck(same, padded.padding_mask)
    level_maps = detector.neck(own, alone.padding_mask).maps[: len(own)]
    rounding = [
        abs(count - share * extent)
        for mask in pyramid.padding_masks
        for count, share, extent in (
            ((~mask[0, :, 0]).sum().item(), image.shape[1] / size[0], mask.shape[1]),
            ((~mask[0, 0]).sum().item(), image.shape[2] / size[1], mask.shape[2]),
        )
    ]
    return PaddingEffects(
        max(_change(a, b) for a, b in zip(own, wide, strict=True)),
        max(_change(a, b) for a, b in zip(level_maps, pyramid.maps, strict=False)),
        max(rounding),
        detector(alone).last,
        detector(padded).last,
    )


def _pad(image: Tensor, size: Size) -> ImageBatch:
    """As in a batch with an image of that size."""
    batch = ImageBatch.from_images([image, image.new_zeros(3, *size)])
    return ImageBatch(batch.images[:1], batch.padding_mask[:1])


def _fill(features: Tensor, size: Size) -> Tensor:
    rows, columns = size[0] - features.shape[2], size[1] - features.shape[3]
    return F.pad(features, (0, columns, 0, rows))


def _change(alone: Tensor, padded: Tensor) -> float:
    """Over the cells that the map of the image alone has."""
    _, _, H, W = alone.shape
    return ((padded[:, :, :H, :W] - alone).square().mean() / alone.square().mean()).sqrt().item()
