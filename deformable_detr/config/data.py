"""Where images come from and what the model sees of them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.config.base import (
    FrozenModel,
    PixelRange,
    Positive,
    Probability,
    Range,
    require_increasing,
)


class SplitConfig(FrozenModel):
    """A set of images in COCO format: the folder and the annotation file."""

    images: Path | None = None
    annotations: Path | None = None


class CocoAugmentationConfig(FrozenModel):
    """The paper's: flip, then a random size, half of the time after a random crop."""

    kind: Literal["coco"] = "coco"
    sizes: tuple[Positive, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    max_size: Positive = 1333
    pre_crop_sizes: tuple[Positive, ...] = (400, 500, 600)
    crop_sizes: PixelRange = (384, 600)


class ZoomCropAugmentationConfig(FrozenModel):
    """For photos without an up: square crops at random zoom, any of their eight orientations.

    A crop of `size * u` pixels, u uniform in `scales`, is resized to `size`; with
    `around_objects` it holds at least one object, where there is one. A cut box stays if
    `min_visibility` of its area is inside. Colours change by at most the share `color_jitter`, and
    the share `soften` of the crops is made as soft as a coarser camera would show them.
    """

    kind: Literal["zoom_crop"] = "zoom_crop"
    size: Positive
    scales: Range = (0.5, 1.0)
    around_objects: bool = False
    min_visibility: float = Field(0.4, ge=0, le=1)
    color_jitter: Probability = 0.0
    soften: Probability = 0.0

    @model_validator(mode="after")
    def _check(self) -> "ZoomCropAugmentationConfig":
        require_increasing("scales", self.scales)
        return self


class NoAugmentationConfig(FrozenModel):
    """None: images are resized as for evaluation, their shorter side to `size`."""

    kind: Literal["none"] = "none"
    size: Positive = 800
    max_size: Positive = 1333


AugmentationConfig = Annotated[
    CocoAugmentationConfig | ZoomCropAugmentationConfig | NoAugmentationConfig,
    Field(discriminator="kind"),
]


class DataConfig(FrozenModel):
    """Where images come from and what the model sees of them.

    Evaluation and prediction resize the shorter side to `eval_size`, the longer to at most
    `eval_max_size`. An epoch goes `repeats` times through the training set, which matters where
    it holds few large photos. `cache_images` keeps decoded photos in memory. A micro-batch in
    training has at most `max_padded_pixels`, padding included: the images of a larger one are
    made smaller.
    """

    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    augmentation: AugmentationConfig = CocoAugmentationConfig()
    repeats: Positive = 1
    eval_size: Positive = 800
    eval_max_size: Positive = 1333
    num_workers: int = Field(2, ge=0)
    cache_images: bool = False
    max_padded_pixels: Positive | None = None
