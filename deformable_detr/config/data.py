"""Settings of data sets, augmentation and image sizes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from deformable_detr.arguments import MOST_WORKERS
from deformable_detr.config.base import (
    FrozenModel,
    LongSide,
    PixelRange,
    Positive,
    Probability,
    Range,
    Side,
    require_increasing,
)


class SplitConfig(FrozenModel):
    """Data set in COCO format."""

    images: Path | None = None
    """Folder of images."""

    annotations: Path | None = None
    """JSON file of annotations."""


class CocoAugmentationConfig(FrozenModel):
    """Augmentation of the paper: flip, then a random size, half of the time after a random crop."""

    kind: Literal["coco"] = "coco"
    sizes: tuple[Side, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Lengths of the shorter side in pixels; one is drawn per image."""

    max_size: LongSide = 1333
    """Maximum of the longer side in pixels."""

    pre_crop_sizes: tuple[Side, ...] = (400, 500, 600)
    """Lengths of the shorter side in pixels before a crop; one is drawn per image."""

    crop_sizes: PixelRange = (384, 600)
    """Minimum and maximum side of a crop in pixels."""


class ZoomCropAugmentationConfig(FrozenModel):
    """Augmentation for aerial images: square crops at random zoom, in one of eight orientations."""

    kind: Literal["zoom_crop"] = "zoom_crop"
    size: Side
    """Side in pixels that crops are resized to."""

    scales: Range = (0.5, 1.0)
    """Range of the side of a crop as a fraction of `size`; below 1 objects are enlarged."""

    around_objects: bool = False
    """Place every crop so that it contains the center of an object, if the image has one."""

    min_visibility: float = Field(0.4, ge=0, le=1)
    """Minimum fraction of a box's area inside the crop; other boxes are dropped."""

    color_jitter: Probability = 0.0
    """Maximum relative change of brightness, contrast and saturation; 0 for none."""

    soften: Probability = 0.0
    """Probability of resizing a crop down and back, which makes it as soft as from a camera of
    lower resolution."""

    @model_validator(mode="after")
    def _check(self) -> "ZoomCropAugmentationConfig":
        require_increasing("scales", self.scales)
        return self


class NoAugmentationConfig(FrozenModel):
    """No augmentation; images are resized as for evaluation."""

    kind: Literal["none"] = "none"
    size: Side = 800
    """Shorter side in pixels."""

    max_size: LongSide = 1333
    """Maximum of the longer side in pixels."""


AugmentationConfig = Annotated[
    CocoAugmentationConfig | ZoomCropAugmentationConfig | NoAugmentationConfig,
    Field(discriminator="kind"),
]


class DataConfig(FrozenModel):
    """Settings of data sets and image preparation."""

    train: SplitConfig = SplitConfig()
    """The training set."""

    val: SplitConfig = SplitConfig()
    """The validation set."""

    exif: Literal["auto", "upright", "stored"] = "auto"
    """Pixels that sizes and boxes of the annotations refer to: those of the upright images, turned
    as the EXIF orientation says, or the stored ones. "auto" decides for each data set by the
    annotated width and height of the images whose size the orientation changes. If there are none,
    a validation set follows the training set, and a training set is read upright; with
    `match_official` stored. In a checkpoint it is the decision for the training set, by which the
    detector reads images too."""

    augmentation: AugmentationConfig = CocoAugmentationConfig()
    """Augmentation of training images."""

    empty_boxes: Literal["missed", "ignored"] = "missed"
    """What annotated boxes without area inside their image are in evaluation: `missed` objects, as
    COCO counts them, or `ignored`, left out. They are never learned."""

    image_order: Literal["id", "file_name"] = "id"
    """Order of the images of a set, from which samples are drawn: by their id, or by their file
    name, which is the same for a data set in any format."""

    repeats: int = Field(1, gt=0, le=10_000)
    """Passes over the training set per epoch; more than 1 for data sets of few large images."""

    repeat_threshold: float | None = Field(None, gt=0, le=1)
    """Show images of rare classes more often: a class in a fraction f of the training images has
    the repeat factor max(1, sqrt(repeat_threshold / f)), and an image the largest of its classes
    (LVIS; at most 100). The fraction of a factor is drawn per epoch; steps per epoch are those of
    the sum of all factors. Null shows each image once."""

    eval_size: Side = 800
    """Shorter side of images in pixels, in evaluation and prediction."""

    eval_max_size: LongSide = 1333
    """Maximum of the longer side of images in pixels, in evaluation and prediction."""

    clip_boxes: bool = True
    """Clip detected boxes to the image, in prediction and, without `match_official`, in
    evaluation."""

    num_workers: int = Field(2, ge=0, le=MOST_WORKERS)
    """Worker processes that load images, per process of the run; 0 loads them in the process of the
    run itself."""

    cache_images: bool = False
    """Keep decoded images in the memory of every worker; for data sets of few large images."""

    max_padded_pixels: Positive | None = None
    """Maximum number of pixels of a training micro-batch, padding included; the images of a larger
    one are scaled down. Null for no limit."""
