"""Feature mimicking: a training loss that makes queries similar to features of object crops.

A design for Deformable DETR after the R-CNN feature mimicking of Deformable ConvNets v2 (Zhu et
al., CVPR 2019, section 3.3), where the student is the region features of Faster R-CNN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from deformable_detr.boxes import cxcywh_to_xyxy
from deformable_detr.layers.mlp import MLP
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.structures import ImageBatch, Target

MIMIC_DIM = 1024  # paper: two fully connected layers of 1024


class Pairs(Protocol):
    """Interface of the matched queries and objects of one image, implemented by `Match`."""

    @property
    def query_index(self) -> Tensor:
        """(T',) int64 indices of the matched queries."""

    @property
    def target_index(self) -> Tensor:
        """(T',) int64 index of the object matched to each query."""


@dataclass(frozen=True)
class MimicFeatures:
    """Features of R matched queries and of crops of their objects, from all images of a batch.

    Attributes:
        student: (R, 1024) features of the queries.
        teacher: (R, 1024) features of the crops.
        logits: (R, K + 1) class logits of the crops; the last class is "no object".
        labels: (R,) int64 in 0..K-1, true classes of the crops.
    """

    student: Tensor
    teacher: Tensor
    logits: Tensor
    labels: Tensor


class FeatureMimicking(nn.Module):
    """Student and teacher features of feature mimicking; used in training only.

    The student is a linear function of a query's last hidden state. The teacher is not a separate
    network: the detector's own backbone is run on the object's box cut out of the image; its
    coarsest map is averaged, and two linear layers follow. Both sides are trained; a classifier
    of the crops keeps the teacher's features meaningful.

    The norms of the backbone should be frozen: otherwise the crops enter their statistics.

    Args:
        backbone_channels: channels of the backbone's coarsest map.
        embed_dim: C, width of the queries.
        num_classes: K.
        max_regions: maximum number of objects per image; a random subset is taken of more.
        crop_size_px: height and width to which crops are resized, rounded up to a size that the
            backbone takes.
    """

    def __init__(
        self,
        *,
        backbone_channels: int,
        embed_dim: int,
        num_classes: int,
        max_regions: int,
        crop_size_px: int,
    ) -> None:
        super().__init__()
        for name, value in (("max_regions", max_regions), ("crop_size_px", crop_size_px)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.max_regions = max_regions
        self.crop_size_px = crop_size_px
        self.backbone_channels = backbone_channels
        self.student = nn.Linear(embed_dim, MIMIC_DIM)
        self.teacher = MLP(backbone_channels, MIMIC_DIM, MIMIC_DIM, num_layers=2)
        self.classifier = nn.Linear(MIMIC_DIM, num_classes + 1)

    def forward(
        self,
        backbone: Backbone,
        images: ImageBatch,
        hidden: Tensor,
        targets: Sequence[Target],
        matches: Sequence[Pairs],
    ) -> MimicFeatures:
        """Compute the features of up to `max_regions` matched queries per image.

        If the batch has no objects, the backbone is not run on crops, and every parameter of this
        module still gets a gradient, of zeros.

        Args:
            backbone: the detector's own; its parameters are trained through the crops too.
            images: input of the detector.
            hidden: (N, Q, C) queries after the last decoder layer.
            targets: one per image.
            matches: matches of the last decoder layer, one per image.

        Returns:
            Features of R queries and crops, image after image.

        Raises:
            RuntimeError: the module is in eval mode.
        """
        if not self.training:
            raise RuntimeError(
                "feature mimicking must only run in training, got a module in eval mode; "
                "call train() first, or leave it out"
            )
        pairs = [_at_most(self.max_regions, match) for match in matches]
        query_index = torch.cat([queries for queries, _ in pairs])
        image_index = torch.cat([torch.full_like(pair[0], i) for i, pair in enumerate(pairs)])
        objects = [
            (target.boxes[chosen], target.labels[chosen])
            for target, (_, chosen) in zip(targets, pairs, strict=True)
        ]
        boxes, labels = (torch.cat(values) for values in zip(*objects, strict=True))
        teacher = self.teacher(self._look_at(backbone, images, image_index, boxes))
        return MimicFeatures(
            student=self.student(hidden[image_index, query_index]),
            teacher=teacher,
            logits=self.classifier(teacher.relu()),
            labels=labels,
        )

    def _look_at(
        self, backbone: Backbone, images: ImageBatch, image_index: Tensor, boxes: Tensor
    ) -> Tensor:
        """Return the (R, backbone_channels) features of the boxes, averaged over each crop."""
        if len(boxes) == 0:
            return images.images.new_zeros(0, self.backbone_channels)
        size_px, _ = backbone.padded_size((self.crop_size_px, self.crop_size_px))
        crops = crop_boxes(images, image_index, boxes, size_px=size_px)
        return backbone(crops)[-1].mean((2, 3))


def crop_boxes(images: ImageBatch, image_index: Tensor, boxes: Tensor, *, size_px: int) -> Tensor:
    """Cut boxes out of their images and resize them to squares.

    A pixel of a crop is the mean of bilinear samples of its part of the image, at most one pixel
    apart. Beyond the border of an image its outermost pixels are repeated; padding is never read.

    Args:
        images: N padded images.
        image_index: (R,) int64 in 0..N-1.
        boxes: (R, 4) cxcywh relative to the image without padding.
        size_px: height and width of the crops.

    Returns:
        (R, channels, size_px, size_px), without a gradient towards the images.
    """
    is_valid = ~images.padding_mask
    heights, widths = is_valid[:, :, 0].sum(1), is_valid[:, 0].sum(1)
    continued = _continue_edges(images.images.detach(), heights, widths)
    extents = torch.stack((widths, heights, widths, heights), dim=1)[image_index]
    corners = cxcywh_to_xyxy(boxes) * extents
    regions = torch.cat((image_index[:, None], corners), dim=1).to(continued.dtype)
    crops: Tensor = roi_align(continued, regions, size_px, aligned=True)
    return crops


def _continue_edges(images: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    """Repeat the last row and column of (N, channels, H, W) images over their padding."""
    N, _, H, W = images.shape
    rows = torch.arange(H, device=images.device).minimum(heights[:, None] - 1)  # (N, H)
    columns = torch.arange(W, device=images.device).minimum(widths[:, None] - 1)  # (N, W)
    image = torch.arange(N, device=images.device)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return pixels.permute(0, 3, 1, 2)


def _at_most(limit: int, match: Pairs) -> tuple[Tensor, Tensor]:
    """Return all queries and objects of a match, or a random subset of `limit` pairs."""
    count = len(match.query_index)
    if count <= limit:
        return match.query_index, match.target_index
    chosen = torch.randperm(count, device=match.query_index.device)[:limit]
    return match.query_index[chosen], match.target_index[chosen]
