"""Data passed between modules: one frozen dataclass per interface.

Letters: N images, H x W the padded size, C channels of the model, L levels of H_l x W_l cells,
S cells in all, Q queries, K classes, T boxes of one image, R detections of one image.
Sizes are (height, width). A padding mask is True on padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from deformable_detr.arguments import checked, require_type
from deformable_detr.pixels.channels import MOST_CHANNELS, RGB, AnyImage

Size = tuple[int, int]  # (height, width)
LevelShapes = tuple[Size, ...]
BOX_TOLERANCE = 1e-3  # rounding error of a box of the whole image, in low precision too
_T = TypeVar("_T", bound="_Movable")


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


@dataclass(frozen=True)
class _Movable:
    """Dataclass of tensors that can be moved to a device."""

    def to(self: _T, device: torch.device | str, *, non_blocking: bool = False) -> _T:
        """Return a copy with all tensors on `device`."""
        return replace(
            self,
            **{
                field.name: value.to(device, non_blocking=non_blocking)
                for field in fields(self)
                if isinstance(value := getattr(self, field.name), Tensor)
            },
        )

    def pin_memory(self: _T) -> _T:
        """Return a copy with all tensors in page-locked memory."""
        return replace(
            self,
            **{
                field.name: value.pin_memory()
                for field in fields(self)
                if isinstance(value := getattr(self, field.name), Tensor)
            },
        )


@dataclass(frozen=True)
class Sample:
    """Image and its objects, as read from disk and during augmentation.

    Attributes:
        image: RGB image, or an image of another number of channels.
        boxes_xyxy: (T, 4) float32 corners in pixels of `image`.
        labels: (T,) int64 in 0..K-1.
        area: (T,) float32 object areas in square pixels of `image` (of the mask, if known).
        image_id: id in the annotation file.
        original_size: (height, width) of the image before any transform.
    """

    image: AnyImage
    boxes_xyxy: Tensor
    labels: Tensor
    area: Tensor
    image_id: int
    original_size: Size

    def __post_init__(self) -> None:
        require(
            self.boxes_xyxy.ndim == 2 and self.boxes_xyxy.shape[1] == 4,
            f"boxes_xyxy must have shape (T, 4), got {_shape(self.boxes_xyxy)}",
        )
        count = len(self.boxes_xyxy)
        for name, value in (("labels", self.labels), ("area", self.area)):
            require(
                _shape(value) == (count,),
                f"{name} must have shape ({count},) as there are {count} boxes, "
                f"got {_shape(value)}",
            )

    @property
    def size(self) -> Size:
        """(height, width) of the image in its current state."""
        return self.image.height, self.image.width


@dataclass(frozen=True)
class Target(_Movable):
    """Ground-truth objects of one image of a batch.

    Attributes:
        boxes: (T, 4) cxcywh relative to the image without padding, in [0, 1].
        labels: (T,) int64 in 0..K-1.
        image_id: id in the annotation file; not used by losses.
        original_size: (height, width) of the image on disk; not used by losses.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int = 0
    original_size: Size = (1, 1)

    def __post_init__(self) -> None:
        require_type("boxes", self.boxes, Tensor)
        require_type("labels", self.labels, Tensor)
        require_type("image_id", self.image_id, int)
        require_type("original_size", self.original_size, Size)
        require(
            self.boxes.ndim == 2 and self.boxes.shape[1] == 4,
            f"boxes must have shape (T, 4), got {_shape(self.boxes)}",
        )
        require(
            _shape(self.labels) == (len(self.boxes),),
            f"labels must have shape ({len(self.boxes)},), got {_shape(self.labels)}",
        )
        require(self.labels.dtype == torch.int64, f"labels must be int64, got {self.labels.dtype}")
        if (
            self.boxes.device.type == "cpu" and len(self.boxes) > 0
        ):  # on a GPU this would synchronize
            self._check_ranges()

    def _check_ranges(self) -> None:
        """Raise for boxes in pixels and labels below 0, which would train without an error."""
        low, high = (float(number) for number in self.boxes.aminmax())
        require(
            low >= -BOX_TOLERANCE and high <= 1 + BOX_TOLERANCE,
            f"boxes of image {self.image_id} must be cxcywh relative to the image, in [0, 1], "
            f"got numbers from {low:g} to {high:g}; divide pixels by its width and height",
        )
        lowest = int(self.labels.min())
        require(lowest >= 0, f"labels of image {self.image_id} must be at least 0, got {lowest}")

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class ImageBatch(_Movable):
    """Images of different sizes in one tensor, padded with zeros at the right and the bottom.

    Attributes:
        images: (N, 3, H, W) RGB, normalized by the statistics of ImageNet; or 1 to 16 channels,
            normalized by the means of these statistics.
        padding_mask: (N, H, W) bool, True on padding.
    """

    images: Tensor
    padding_mask: Tensor

    def __post_init__(self) -> None:
        require(
            self.images.ndim == 4 and 1 <= self.images.shape[1] <= MOST_CHANNELS,
            f"images must have shape (N, channels, H, W) with 1 to {MOST_CHANNELS} channels, "
            f"got {_shape(self.images)}",
        )
        N, _, H, W = self.images.shape
        require(
            _shape(self.padding_mask) == (N, H, W) and self.padding_mask.dtype == torch.bool,
            f"padding_mask must be bool of shape {(N, H, W)}, got {self.padding_mask.dtype} "
            f"of shape {_shape(self.padding_mask)}",
        )

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> "ImageBatch":
        """Pad (channels, h, w) images to the largest height and width among them."""
        require(len(images) > 0, "images must hold at least one image, got none")
        channels = images[0].shape[0] if images[0].ndim == 3 else RGB
        for position, image in enumerate(images):
            require(
                image.ndim == 3 and image.shape[0] == channels,
                f"images[{position}] must have shape ({channels}, height, width), "
                f"got {_shape(image)}",
            )
        H = max(image.shape[1] for image in images)
        W = max(image.shape[2] for image in images)
        batch = images[0].new_zeros(len(images), channels, H, W)
        padding_mask = torch.ones(len(images), H, W, dtype=torch.bool, device=batch.device)
        for position, image in enumerate(images):
            _, height, width = image.shape
            batch[position, :, :height, :width] = image
            padding_mask[position, :height, :width] = False
        return cls(batch, padding_mask)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Pyramid:
    """Feature maps of L levels, finest first, all with C channels.

    Attributes:
        maps: L tensors (N, C, H_l, W_l).
        padding_masks: L tensors (N, H_l, W_l) bool.
    """

    maps: tuple[Tensor, ...]
    padding_masks: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        require(
            len(self.maps) == len(self.padding_masks),
            f"padding_masks must be one per map, got {len(self.padding_masks)} "
            f"for {len(self.maps)} maps",
        )
        for level, (features, mask) in enumerate(zip(self.maps, self.padding_masks, strict=True)):
            N, _, H, W = features.shape
            require(
                _shape(mask) == (N, H, W),
                f"padding_masks[{level}] must have shape {(N, H, W)}, got {_shape(mask)}",
            )


@dataclass(frozen=True)
class Memory:
    """Pyramid flattened to tokens, level by level and row by row: the input of attention.

    Attributes:
        tokens: (N, S, C) features.
        positions: (N, S, C) position embedding plus level embedding.
        padding_mask: (N, S) bool.
        level_shapes: (H_l, W_l) of the L levels; their areas sum to S.
        valid_ratios: (N, L, 2) fraction of each level's (width, height) that is not padding.
    """

    tokens: Tensor
    positions: Tensor
    padding_mask: Tensor
    level_shapes: LevelShapes
    valid_ratios: Tensor

    def __post_init__(self) -> None:
        N, S, _ = self.tokens.shape
        cells = sum(height * width for height, width in self.level_shapes)
        require(
            cells == S,
            f"tokens holds S = {S} cells but level_shapes {self.level_shapes} describe {cells}",
        )
        require(
            self.positions.shape == self.tokens.shape,
            f"positions must have the shape of tokens {_shape(self.tokens)}, "
            f"got {_shape(self.positions)}",
        )
        require(
            _shape(self.padding_mask) == (N, S),
            f"padding_mask must have shape {(N, S)}, got {_shape(self.padding_mask)}",
        )
        expected = (N, len(self.level_shapes), 2)
        require(
            _shape(self.valid_ratios) == expected,
            f"valid_ratios must have shape {expected}, got {_shape(self.valid_ratios)}",
        )


@dataclass(frozen=True)
class Queries:
    """Initial queries of the decoder.

    Attributes:
        query: (N, Q, C) content.
        query_pos: (N, Q, C) position embedding, the same in all layers; None if each layer computes
            it from its references.
        reference_points: (N, Q, 2) points (x, y) or (N, Q, 4) boxes cxcywh, relative to the
            image without padding, in [0, 1].
        attention_mask: (Q, Q) bool, True where the query of a row does not attend to that of a
            column; None if all attend to all.
    """

    query: Tensor
    query_pos: Tensor | None
    reference_points: Tensor
    attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.query_pos is None or self.query.shape == self.query_pos.shape,
            f"query_pos must have the shape of query {_shape(self.query)}, "
            f"got {self.query_pos is not None and _shape(self.query_pos)}",
        )
        require(
            self.attention_mask is None
            or _shape(self.attention_mask) == (self.query.shape[1], self.query.shape[1]),
            f"attention_mask must have shape {(self.query.shape[1], self.query.shape[1])}, "
            f"got {self.attention_mask is not None and _shape(self.attention_mask)}",
        )
        require(
            self.reference_points.shape[:2] == self.query.shape[:2]
            and self.reference_points.shape[2] in (2, 4),
            f"reference_points must have shape {(*self.query.shape[:2], '2 or 4')}, "
            f"got {_shape(self.reference_points)}",
        )


@dataclass(frozen=True)
class Predictions:
    """Predictions of one layer.

    Attributes:
        logits: (N, Q, K); their sigmoid is the score per class, there is no "no object" class.
        boxes: (N, Q, 4) cxcywh relative to the image without padding, in (0, 1).
        hidden: (N, Q, C) input of the heads of a decoder layer; None for other predictions.
    """

    logits: Tensor
    boxes: Tensor
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            _shape(self.boxes) == (*self.logits.shape[:2], 4),
            f"boxes must have shape {(*self.logits.shape[:2], 4)} as logits has "
            f"{_shape(self.logits)}, got {_shape(self.boxes)}",
        )


@dataclass(frozen=True)
class Denoised:
    """Predictions of the denoising queries, which start from noisy copies of the objects.

    Group g has 2 T slots, T being the largest number of objects of an image here: slot
    2 g T + t is the positive query of object t, slot (2 g + 1) T + t its negative one. Slots of
    objects that an image does not have are empty.

    Attributes:
        layers: predictions of all decoder layers for D = 2 G T slots, first layer first.
        targets: the objects that were copied, one target per image.
        num_groups: G.
    """

    layers: tuple[Predictions, ...]
    targets: tuple[Target, ...]
    num_groups: int


@dataclass(frozen=True)
class ModelOutput:
    """Predictions of a forward pass.

    Attributes:
        last: predictions of the last decoder layer.
        auxiliary: predictions of the earlier decoder layers, first layer first.
        encoder: proposals of a two-stage model: of all S tokens, or of the Q chosen ones where
            they are ranked by class; else None.
        denoised: predictions of the denoising queries, in training; else None.
    """

    last: Predictions
    auxiliary: tuple[Predictions, ...]
    encoder: Predictions | None
    denoised: Denoised | None = None


@dataclass(frozen=True)
class Detections(_Movable):
    """Detections in one image, best first.

    Attributes:
        scores: (R,) in [0, 1].
        labels: (R,) int64 in 0..K-1.
        boxes_xyxy: (R, 4) corners in pixels of the original image.
    """

    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor

    def __post_init__(self) -> None:
        for name in ("scores", "labels", "boxes_xyxy"):
            require_type(name, getattr(self, name), Tensor)
        count = len(self.scores)
        require(
            _shape(self.labels) == (count,) and _shape(self.boxes_xyxy) == (count, 4),
            f"labels and boxes_xyxy must have shapes ({count},) and ({count}, 4), "
            f"got {_shape(self.labels)} and {_shape(self.boxes_xyxy)}",
        )

    def __len__(self) -> int:
        return len(self.scores)

    @checked
    def above(self, threshold: float) -> "Detections":
        """Select the detections with a score of at least `threshold`."""
        return self.select(self.scores >= threshold)

    @checked
    def select(self, keep: Tensor) -> "Detections":
        """Select the detections at the given indices, or where the given mask is True."""
        return Detections(self.scores[keep], self.labels[keep], self.boxes_xyxy[keep])
