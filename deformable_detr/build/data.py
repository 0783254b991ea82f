"""Config -> data sets and what happens to their images."""

from typing_extensions import assert_never

from deformable_detr.config import (
    AugmentationConfig,
    CocoAugmentationConfig,
    ConfigError,
    DataConfig,
    SplitConfig,
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
    Transform,
    coco_train_transform,
    resize_only,
)
from deformable_detr.labels import LabelSpace


def build_dataset(
    config: SplitConfig,
    *,
    name: str,
    label_space: LabelSpace | None = None,
    cache_images: bool = False,
) -> CocoDataset:
    """A set of images.

    Args:
        config: its paths.
        name: "train" or "val", for errors.
        label_space: the categories it must have, if they are known.
        cache_images: keep decoded images in memory.

    Raises:
        ConfigError: a path is not given.
    """
    for key, path in (("images", config.images), ("annotations", config.annotations)):
        if path is None:
            raise ConfigError(f"data.{name}.{key}: must be given, as data.{name}.{key}=PATH")
    assert config.images is not None
    assert config.annotations is not None
    return CocoDataset(
        config.images, config.annotations, label_space=label_space, cache_images=cache_images
    )


def build_train_transform(config: AugmentationConfig) -> Transform:
    """Augmentation and resizing of training images."""
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
        case _:
            assert_never(config)


def build_eval_transform(config: DataConfig) -> Transform:
    """Resizing of images that are evaluated or predicted on."""
    return resize_only(config.eval_size, config.eval_max_size)
