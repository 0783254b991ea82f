"""Augmentations of training samples, and the two pipelines of the official code.

A transform takes a sample and a generator and returns a new sample. It draws from that
generator only, so the augmentation of a sample depends on the generator's seed alone.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Generator, Tensor

from deformable_detr.boxes import xyxy_to_cxcywh
from deformable_detr.data.geometry import (
    crop,
    flip_horizontally,
    resize,
    resize_image,
    resized_size,
    rotate_quarter,
)
from deformable_detr.pixels.channels import AnyImage, ChannelImage
from deformable_detr.pixels.normalization import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from deformable_detr.structures import Sample, Size, Target, require


class Transform(Protocol):
    """Interface of all transforms of this module."""

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """Return the transformed sample; `sample` is not modified."""


@dataclass(frozen=True)
class Compose:
    """Sequence of transforms, applied in order."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


@dataclass(frozen=True)
class OneOf:
    """Random choice of one of several transforms, with equal probability."""

    choices: tuple[Transform, ...]

    def __post_init__(self) -> None:
        require(len(self.choices) > 0, "choices must hold at least one transform, got none")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        chosen = self.choices[_draw_integer(generator, 0, len(self.choices) - 1)]
        return chosen(sample, generator)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Horizontal flip with the given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_probability(self.probability)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        flips = _draw(generator, 0, 1) < self.probability
        return flip_horizontally(sample) if flips else sample


@dataclass(frozen=True)
class RandomRotate90:
    """Rotation by 0, 90, 180 or 270 degrees, for aerial images, which have no upright side."""

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        for _ in range(_draw_integer(generator, 0, 3)):
            sample = rotate_quarter(sample)
        return sample


@dataclass(frozen=True)
class RandomResize:
    """Resize of the shorter side to one of `short_sides`; see `resized_size`.

    Attributes:
        short_sides: lengths in pixels, drawn with equal probability.
        max_size: maximum length of the longer side, or None for no limit.
    """

    short_sides: tuple[int, ...]
    max_size: int | None = None

    def __post_init__(self) -> None:
        require(
            len(self.short_sides) > 0 and min(self.short_sides) > 0,
            f"short_sides must be positive and at least one, got {self.short_sides}",
        )

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        short_side = self.short_sides[_draw_integer(generator, 0, len(self.short_sides) - 1)]
        return resize(sample, resized_size(sample.size, short_side, self.max_size))


@dataclass(frozen=True)
class Resize:
    """Resize of the shorter side to `short_side`, as in the official evaluation pipeline.

    Attributes:
        short_side: length in pixels.
        max_size: maximum length of the longer side.
    """

    short_side: int
    max_size: int

    def __post_init__(self) -> None:
        require(self.short_side > 0, f"short_side must be positive, got {self.short_side}")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        return resize(sample, self.size_of(sample.size))

    def size_of(self, size: Size) -> Size:
        """Return the (height, width) to which an image of `size` is resized."""
        return resized_size(size, self.short_side, self.max_size)

    def resize_image(self, image: AnyImage) -> AnyImage:
        """Resize an image without objects in the same way."""
        return resize_image(image, self.size_of((image.height, image.width)))


@dataclass(frozen=True)
class RandomSizeCrop:
    """Crop at a random place, with sides drawn from min_size..max_size.

    Limits are capped at the length of the image's side.
    """

    min_size: int
    max_size: int

    def __post_init__(self) -> None:
        require(
            0 < self.min_size <= self.max_size,
            f"min_size must be positive and at most max_size, got {self.min_size} "
            f"and {self.max_size}",
        )

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        height, width = (
            _draw_integer(generator, min(self.min_size, side), min(self.max_size, side))
            for side in sample.size
        )
        top = _draw_integer(generator, 0, sample.size[0] - height)
        left = _draw_integer(generator, 0, sample.size[1] - width)
        return crop(sample, top=top, left=left, size=(height, width))


@dataclass(frozen=True)
class RandomZoomCrop:
    """Square crop of random size at a random place, resized to a fixed size.

    Attributes:
        size: side length of the result in pixels.
        scale: the side of the crop is `size` times a number drawn from this range, and at most
            the image's shorter side; below 1 objects grow, above 1 they shrink.
        min_visibility: boxes that keep a smaller fraction of their area are dropped.
        around_objects: place the crop so that it contains the center of an object drawn with
            equal probability; anywhere if the image has no objects.
    """

    size: int
    scale: tuple[float, float] = (1.0, 1.0)
    min_visibility: float = 0.0
    around_objects: bool = False

    def __post_init__(self) -> None:
        require(self.size > 0, f"size must be positive, got {self.size}")
        require(
            0 < self.scale[0] <= self.scale[1],
            f"scale must be two positive numbers, the smaller first, got {self.scale}",
        )
        _require_probability(self.min_visibility, "min_visibility")

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        wanted = round(self.size * _draw(generator, *self.scale))
        side = min(max(wanted, 1), *sample.size)
        top, left = self._place(sample, side, generator)
        square = crop(
            sample, top=top, left=left, size=(side, side), min_visibility=self.min_visibility
        )
        return resize(square, (self.size, self.size))

    def _place(self, sample: Sample, side: int, generator: Generator) -> tuple[int, int]:
        """Return the first row and the first column of the square."""
        limits = [extent - side for extent in sample.size]
        if not self.around_objects or len(sample.labels) == 0:
            top, left = (_draw_integer(generator, 0, limit) for limit in limits)
            return top, left
        chosen = _draw_integer(generator, 0, len(sample.labels) - 1)
        x, y = xyxy_to_cxcywh(sample.boxes_xyxy[chosen])[:2].tolist()
        top, left = (
            min(max(int(center - side * _draw(generator, 0, 1)), 0), limit)
            for center, limit in zip((y, x), limits, strict=True)
        )
        return top, left


@dataclass(frozen=True)
class RandomSoften:
    """Blur by down- and upsampling with the given probability, as a camera of lower resolution.

    Images of one place often have the same sharpness, which a detector must not rely on.

    Attributes:
        probability: probability of blurring.
        scale: range of the downsampling factor, in (0, 1].
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.4, 0.9)

    def __post_init__(self) -> None:
        _require_probability(self.probability)
        require(
            0 < self.scale[0] <= self.scale[1] <= 1,
            f"scale must be two numbers in (0, 1], the smaller first, got {self.scale}",
        )

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        if _draw(generator, 0, 1) >= self.probability:
            return sample
        share = _draw(generator, *self.scale)
        width, height = (max(round(side * share), 1) for side in sample.image.size)
        small = sample.image.resize((width, height), Image.Resampling.BILINEAR)
        return replace(sample, image=small.resize(sample.image.size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class ColorJitter:
    """Random change of brightness, contrast and saturation by factors from [1 - x, 1 + x].

    Images of another number of channels than three have no saturation.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _require_probability(getattr(self, name), name)

    def __call__(self, sample: Sample, generator: Generator) -> Sample:
        """See `Transform`."""
        brightness, contrast, saturation = (
            _draw(generator, 1 - strength, 1 + strength)
            for strength in (self.brightness, self.contrast, self.saturation)
        )
        image = sample.image
        if isinstance(image, ChannelImage):
            return replace(sample, image=image.brightened(brightness).contrasted(contrast))
        image = TF.adjust_brightness(image, brightness)
        image = TF.adjust_contrast(image, contrast)
        return replace(sample, image=TF.adjust_saturation(image, saturation))


def coco_train_transform(
    *,
    short_sides: tuple[int, ...],
    max_size: int,
    pre_crop_short_sides: tuple[int, ...],
    crop_range: tuple[int, int],
) -> Transform:
    """Build the official training pipeline: flip; then resize, or resize, crop and resize."""
    last_resize = RandomResize(short_sides, max_size)
    cropped = Compose(
        (RandomResize(pre_crop_short_sides), RandomSizeCrop(*crop_range), last_resize)
    )
    return Compose((RandomHorizontalFlip(), OneOf((last_resize, cropped))))


def to_model_input(sample: Sample) -> tuple[Tensor, Target]:
    """Convert a sample to tensors, with relative boxes: the last step of every pipeline.

    Args:
        sample: transformed sample.

    Returns:
        (channels, h, w) float32 normalized image, and its target with boxes relative to (h, w).
    """
    height, width = sample.size
    target = Target(
        boxes=xyxy_to_cxcywh(sample.boxes_xyxy) / torch.tensor((width, height, width, height)),
        labels=sample.labels,
        image_id=sample.image_id,
        original_size=sample.original_size,
    )
    return normalize(sample.image), target


def normalize(image: AnyImage) -> Tensor:
    """Normalize an image; return (channels, h, w) float32.

    RGB images are normalized by ImageNet's means and standard deviations; every channel of other
    images by the mean of these over the colors.
    """
    if isinstance(image, ChannelImage):
        return (image.values() - CHANNEL_MEAN) / CHANNEL_STD
    pixels = TF.to_dtype(TF.pil_to_tensor(image), torch.float32, scale=True)
    return TF.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))


def _draw(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _draw_integer(generator: Generator, low: int, high: int) -> int:
    """Draw an integer from low..high, both inclusive."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _require_probability(value: float, name: str = "probability") -> None:
    require(0 <= value <= 1, f"{name} must be in 0..1, got {value}")
