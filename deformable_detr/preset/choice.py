"""The settings that fit a data set, by dotted key, and the reasons for them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deformable_detr.pixels.channels import RGB
from deformable_detr.preset import constants as c
from deformable_detr.preset.reasons import describe
from deformable_detr.preset.schedule import Length, choose_length, rates_over
from deformable_detr.preset.statistics import SetStatistics
from deformable_detr.preset.views import View, choose_view


@dataclass(frozen=True)
class Start:
    """Weights that training starts from.

    Attributes:
        kind: "checkpoint" of a detector, whose model settings are kept; "backbone" weights; or
            "random".
        file: path of the weights; "" if random.
    """

    kind: Literal["checkpoint", "backbone", "random"]
    file: str = ""


@dataclass(frozen=True)
class Choice:
    """Settings, and the reasons for them.

    Attributes:
        settings: values by dotted key, to be laid over the config `quickstart`, or over that of the
            checkpoint that training starts from.
        reasons: at most eight lines of at most 78 characters.
    """

    settings: Mapping[str, Any]
    reasons: tuple[str, ...]


def choose(
    train: SetStatistics,
    val: SetStatistics,
    *,
    start: Start,
    device: c.Device,
    has_bfloat16: bool,
    objects_in_crop: Callable[[float], int],
    channels: int = RGB,
) -> Choice:
    """Choose the settings for a training and a validation set.

    Args:
        train: statistics of the training set.
        val: statistics of the validation set.
        start: weights that training starts from.
        device: kind of device to train on, which bounds the size of images.
        has_bfloat16: whether it computes faster in bfloat16.
        objects_in_crop: number of objects of the densest crop of a training image, by its side in
            pixels.
        channels: number of channels of the images.
    """
    view = choose_view(train, val, device)
    length = choose_length(train, val, view, c.BATCH[device])
    crowd = train.most_objects if view.crop_px is None else objects_in_crop(view.crop_px)
    crowd = max(crowd, val.most_objects)
    strides = _strides(view, device)
    settings = {
        **({} if start.kind == "checkpoint" else _model(view, strides, crowd, start)),
        **({} if channels == RGB else {"model.backbone.in_channels": channels}),
        **_images(train, view, device, channels),
        **_training(length, start),
        "data.repeats": length.repeats,
        "train.precision": "bfloat16" if has_bfloat16 else "float32",
    }
    reasons = describe(
        view,
        length,
        settings,
        crowd=crowd,
        start=(start.kind, start.file),
    )
    return Choice(settings, reasons)


def _model(view: View, strides: tuple[int, ...], crowd: int, start: Start) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model.backbone.out_strides": list(strides),
        "model.backbone.weights": start.file or "none",
        "model.neck.num_levels": len(strides),
        "model.queries.num_queries": _queries(crowd),
        **c.FEW_IMAGES,
        **(c.SMALL_OBJECTS if view.object_px[1] < c.MEDIAN_PX else {}),
    }
    if view.object_share:  # initial boxes double from level to level: the median lies between
        base = view.object_share * 2 ** (-(len(strides) - 1) / 2)
        settings["model.queries.base_size"] = round(min(max(base, c.LEAST_BASE), c.MOST_BASE), 4)
    if start.kind == "random":  # statistics and first layers of random weights must be learned
        settings |= {"model.backbone.norm": "batch_norm", "model.backbone.freeze_up_to_stride": 0}
    return settings


def _strides(view: View, device: c.Device) -> tuple[int, ...]:
    small, _, large = view.object_px
    strides: tuple[int, ...] = c.STRIDES
    if large >= c.COARSE_FROM_PX:
        strides = (*strides, c.COARSE_STRIDE)
    if device == "gpu" and 0 < small < c.FINE_BELOW_PX:
        strides = (c.FINE_STRIDE, *strides)
    return strides


def _queries(crowd: int) -> int:
    steps = math.ceil(c.QUERY_ROOM * crowd / c.QUERY_STEP)
    return min(max(steps * c.QUERY_STEP, c.LEAST_QUERIES), c.MOST_QUERIES)


def _images(train: SetStatistics, view: View, device: c.Device, channels: int) -> dict[str, Any]:
    if view.crop_px is not None:
        scale = view.crop_px / view.size
        augmentation: dict[str, Any] = {
            "kind": "zoom_crop",
            "size": view.size,
            "scales": [round(scale * one, 4) for one in c.CROP_SCALES],
            "around_objects": True,
            "color_jitter": c.COLOR_JITTER,
            "soften": c.CROP_SOFTEN,
        }
    else:
        sizes = [round(view.size * one) for one in c.TRAIN_SIZES]
        augmentation = {
            "kind": "coco",
            "sizes": sizes,
            "max_size": _long_side(sizes[-1], view.aspect),
            "pre_crop_sizes": [round(view.size * one) for one in c.PRE_CROP_SIZES],
            "crop_sizes": [round(view.size * one) for one in c.CROP_SIZES],
        }
    each = RGB if channels == RGB else 4 * channels  # bytes of a pixel; float32 at most
    num_bytes = each * train.num_images * train.short_side * train.long_side
    return {
        "data.augmentation": augmentation,
        "data.eval_size": view.eval_size,
        "data.eval_max_size": _long_side(view.eval_size, view.eval_aspect),
        "data.cache_images": num_bytes <= c.CACHED_BYTES,
        "data.num_workers": c.WORKERS[device],
    }


def _long_side(short: int, aspect: float) -> int:
    steps = math.ceil(c.LONG_SIDE_ROOM * short * aspect / c.SIDE_STEP)
    return min(steps * c.SIDE_STEP, 16384)


def _training(length: Length, start: Start) -> dict[str, Any]:
    factor = math.sqrt(length.batch / c.RATE_BATCH)
    if start.kind == "checkpoint":
        factor *= c.FINETUNE_FACTOR
    rates = {name: float(f"{factor * rate:.3g}") for name, rate in c.RATES.items()}
    if start.kind == "random":
        rates["lr_backbone"] = rates["lr"]
    warmup, decay = rates_over(length.steps)
    return {
        "train.epochs": length.epochs,
        "train.max_steps": None,
        "train.total_batch": length.batch,
        "train.optimizer": {"kind": "adamw", **rates},
        "train.schedule": {"kind": "cosine", "warmup_steps": warmup},
        "train.ema_decay": decay,
        "train.eval_every_epochs": length.eval_every_epochs,
    }
