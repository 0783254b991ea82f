"""Builders of data sets and image transforms."""

import math
from typing import Literal

from typing_extensions import assert_never

from deformable_detr.config import (
    AugmentationConfig,
    CocoAugmentationConfig,
    ConfigError,
    DataConfig,
    NoAugmentationConfig,
    RunConfig,
    ZoomCropAugmentationConfig,
)
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.transforms import (
    ColorJitter,
    Compose,
    RandomHorizontalFlip,
    RandomRotate90,
    RandomSoften,
    RandomZoomCrop,
    Resize,
    Transform,
    coco_train_transform,
)
from deformable_detr.labels import LabelSpace
from deformable_detr.photos import Exif
from deformable_detr.structures import Size


def build_dataset(
    config: RunConfig,
    split: Literal["train", "val"],
    *,
    label_space: LabelSpace | None = None,
    exif_otherwise: Exif = "upright",
) -> CocoDataset:
    """Build the training or the validation set of a run.

    Args:
        config: config of the run.
        split: the set to build.
        label_space: labels to use, of which the set must have the categories; None takes those of
            the annotation file.
        exif_otherwise: as for `CocoDataset`, for `data.exif: auto`.

    Raises:
        ConfigError: a path is not given.
    """
    paths = getattr(config.data, split)
    for key, path in (("images", paths.images), ("annotations", paths.annotations)):
        if path is None:
            raise ConfigError(f"data.{split}.{key}: must be given, as data.{split}.{key}=PATH")
    exif = config.data.exif
    if exif == "auto" and config.match_official:
        exif = "stored"
    return CocoDataset(
        paths.images,
        paths.annotations,
        label_space=label_space,
        raw_labels=config.match_official,
        empty_boxes=config.data.empty_boxes,
        exif=exif,
        exif_otherwise=exif_otherwise,
        image_order=config.data.image_order,
        cache_images=config.data.cache_images,
        channels=config.model.backbone.in_channels,
    )


def build_train_transform(config: AugmentationConfig) -> Transform:
    """Build augmentation and resizing of training images."""
    match config:
        case CocoAugmentationConfig():
            return coco_train_transform(
                short_sides=config.sizes,
                max_size=config.max_size,
                pre_crop_short_sides=config.pre_crop_sizes,
                crop_range=config.crop_sizes,
            )
        case ZoomCropAugmentationConfig():
            jitter = config.color_jitter
            return Compose(
                (
                    RandomZoomCrop(
                        config.size,
                        config.scales,
                        min_visibility=config.min_visibility,
                        around_objects=config.around_objects,
                    ),
                    RandomRotate90(),
                    RandomHorizontalFlip(),
                    RandomSoften(config.soften),
                    ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter),
                )
            )
        case NoAugmentationConfig():
            return Resize(config.size, config.max_size)
        case _:
            assert_never(config)


def fixed_micro_batch(config: RunConfig) -> int:
    """Return the number of images per micro-batch; ConfigError if it is still to be measured."""
    count = config.train.micro_batch
    if count == "auto":
        raise ConfigError("train.micro_batch: must be a number here, got auto; only train measures")
    return count


def largest_size(config: RunConfig) -> Size:
    """Compute (height, width) of the largest micro-batch in training, padding included."""
    micro_batch = fixed_micro_batch(config)
    match config.data.augmentation:
        case CocoAugmentationConfig(sizes=sizes, max_size=max_size):
            # The batch may hold a wide and a high image.
            height = max_size if micro_batch > 1 else min(max(sizes), max_size)
            width = max_size
        case ZoomCropAugmentationConfig(size=size):
            height = width = size
        case NoAugmentationConfig(max_size=max_size):
            height = width = max_size
        case _:
            assert_never(config.data.augmentation)
    limit = config.data.max_padded_pixels
    if limit is not None:
        factor = min(math.sqrt(limit / (micro_batch * height * width)), 1.0)
        height, width = max(int(factor * height), 1), max(int(factor * width), 1)
    return height, width


def clips_in_evaluation(config: RunConfig) -> bool:
    """Return whether boxes are clipped to the image in evaluation; the official code does not."""
    return config.data.clip_boxes and not config.match_official


def build_eval_transform(config: DataConfig) -> Resize:
    """Build resizing of images for evaluation and prediction."""
    return Resize(config.eval_size, config.eval_max_size)
