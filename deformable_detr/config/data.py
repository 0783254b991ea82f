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
    """A set of images in COCO format."""

    images: Path | None = None
    """Folder of the images."""

    annotations: Path | None = None
    """JSON file of the annotations."""


class CocoAugmentationConfig(FrozenModel):
    """The paper's: flip, then a random size, half of the time after a random crop."""

    kind: Literal["coco"] = "coco"
    sizes: tuple[Positive, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Lengths of the shorter side in pixels, of which one is drawn for each image."""

    max_size: Positive = 1333
    """Largest longer side in pixels."""

    pre_crop_sizes: tuple[Positive, ...] = (400, 500, 600)
    """Lengths of the shorter side in pixels, of which one is drawn before a crop."""

    crop_sizes: PixelRange = (384, 600)
    """Smallest and largest side of a crop in pixels."""


class ZoomCropAugmentationConfig(FrozenModel):
    """For photos from above: square crops at random zoom, in any of their eight orientations."""

    kind: Literal["zoom_crop"] = "zoom_crop"
    size: Positive
    """Side in pixels that crops are resized to."""

    scales: Range = (0.5, 1.0)
    """Range of the side of a crop as a share of `size`; below 1 objects grow."""

    around_objects: bool = False
    """Place every crop so that it holds the center of an object, where there is one."""

    min_visibility: float = Field(0.4, ge=0, le=1)
    """Smallest share of its area that a box must have inside the crop; others are dropped."""

    color_jitter: Probability = 0.0
    """Largest relative change of brightness, contrast and saturation; 0 for none."""

    soften: Probability = 0.0
    """Probability that a crop is made as soft as a camera of lower resolution would show it."""

    @model_validator(mode="after")
    def _check(self) -> "ZoomCropAugmentationConfig":
        require_increasing("scales", self.scales)
        return self


class NoAugmentationConfig(FrozenModel):
    """No random changes: images are resized as for evaluation."""

    kind: Literal["none"] = "none"
    size: Positive = 800
    """Shorter side in pixels."""

    max_size: Positive = 1333
    """Largest longer side in pixels."""


AugmentationConfig = Annotated[
    CocoAugmentationConfig | ZoomCropAugmentationConfig | NoAugmentationConfig,
    Field(discriminator="kind"),
]


class DataConfig(FrozenModel):
    """Where images come from and what the model sees of them."""

    train: SplitConfig = SplitConfig()
    """The training set."""

    val: SplitConfig = SplitConfig()
    """The validation set."""

    augmentation: AugmentationConfig = CocoAugmentationConfig()
    """Random changes of training images."""

    repeats: Positive = 1
    """Passes over the training set in an epoch; more than 1 for a set of few large photos."""

    eval_size: Positive = 800
    """Shorter side of images in pixels, in evaluation and prediction."""

    eval_max_size: Positive = 1333
    """Largest longer side of images in pixels, in evaluation and prediction."""

    num_workers: int = Field(2, ge=0)
    """Worker processes that load images, for each process of the run; 0 loads them in the process
    itself."""

    cache_images: bool = False
    """Keep decoded images in the memory of every worker: for few and large ones."""

    max_padded_pixels: Positive | None = None
    """Most pixels of a training micro-batch, all its images with their padding; the images of a
    larger one are made smaller. Null for no limit."""
