"""Rows of the settings of data and training, for `test_config_to_objects`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from helpers.built import detector, same, started
from helpers.setting_rows import FOLDER, Row

from deformable_detr.builders import largest_size
from deformable_detr.config import RunConfig


def transform(config: RunConfig) -> Any:
    return started(config).samples._transform


def both_samples(config: RunConfig) -> tuple[Any, Any]:
    """Return the samples of training and of validation."""
    return started(config).samples, started(config).validation_samples


def steps(config: RunConfig) -> list[str]:
    """Return the names of the transforms, in order, those of alternatives too."""
    names, waiting = [], [transform(config)]
    while waiting:
        one = waiting.pop(0)
        names.append(type(one).__name__)
        waiting = [*getattr(one, "transforms", getattr(one, "choices", ())), *waiting]
    return names


def coco(config: RunConfig) -> tuple[Any, Any, Any, Any]:
    """Return the four parts of the official augmentation that have settings."""
    last, cropped = transform(config).transforms[1].choices
    return last, *cropped.transforms


def data_rows() -> dict[str, Row]:
    def zoom(index: int, name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(transform(config).transforms[index], name)

    section, crop = "data.augmentation", "data.augmentation[zoom_crop]"
    pipeline = ["Compose", "RandomHorizontalFlip", "OneOf", "RandomResize"]
    pipeline += ["Compose", "RandomResize", "RandomSizeCrop", "RandomResize"]
    turns = ["Compose", "RandomZoomCrop", "RandomRotate90", "RandomHorizontalFlip"]
    rows = {
        f"data.{split}.{part}": Row(
            FOLDER / "other" / name,
            lambda c, split=split, read=read: read(started(c).loop, split),
            shown,
        )
        for split in ("train", "val")
        for part, name, read, shown in (
            ("images", "images", folder_of_images, "other"),
            ("annotations", "annotations.json", number_of_images, 3),
        )
    }
    return {
        **rows,
        f"{section}[coco].kind": Row("coco", steps, pipeline, (f"{section}={{kind: none}}",)),
        f"{section}[none].kind": Row("none", steps, ["Resize"]),
        f"{section}[zoom_crop].kind": Row(
            "zoom_crop", steps, [*turns, "RandomSoften", "ColorJitter"]
        ),
        f"{section}[coco].sizes": Row(
            (32, 40), lambda c: same(coco(c)[0].short_sides, coco(c)[3].short_sides)
        ),
        f"{section}[coco].max_size": Row(
            77, lambda c: same(coco(c)[0].max_size, coco(c)[3].max_size)
        ),
        f"{section}[coco].pre_crop_sizes": Row((50,), lambda c: coco(c)[1].short_sides),
        f"{section}[coco].crop_sizes": Row(
            (16, 24), lambda c: (coco(c)[2].min_size, coco(c)[2].max_size)
        ),
        f"{crop}.size": Row(48, zoom(0, "size")),
        f"{crop}.scales": Row((0.25, 2.0), zoom(0, "scale")),
        f"{crop}.around_objects": Row(True, zoom(0, "around_objects")),
        f"{crop}.min_visibility": Row(0.9, zoom(0, "min_visibility")),
        f"{crop}.soften": Row(0.5, zoom(3, "probability")),
        f"{crop}.color_jitter": Row(
            0.5,
            lambda c: same(*(zoom(4, n)(c) for n in ("brightness", "contrast", "saturation"))),
        ),
        f"{section}[none].size": Row(40, lambda c: transform(c).short_side),
        f"{section}[none].max_size": Row(77, lambda c: transform(c).max_size),
        "data.exif": Row("stored", lambda c: same(*(one._source.exif for one in both_samples(c)))),
        "data.image_order": Row(
            "file_name",
            lambda c: same(*(one._source.image_order for one in both_samples(c))),
        ),
        "data.empty_boxes": Row(
            "ignored",
            lambda c: int((started(c).loop.validation.annotations.boxes_xywh[:, 2] == 0).sum()),
            0,
        ),
        "data.repeats": Row(2, lambda c: len(started(c).samples), 2 * 4),
        "data.eval_size": Row(40, lambda c: started(c).validation_samples._transform.short_side),
        "data.eval_max_size": Row(77, lambda c: started(c).validation_samples._transform.max_size),
        "data.clip_boxes": Row(False, lambda c: started(c).loop.validation.clip),
        "data.num_workers": Row(
            1,
            lambda c: same(*(one.num_workers for one in loaders(c))),
        ),
        "data.cache_images": Row(True, lambda c: started(c).samples._source._cache is not None),
        "data.max_padded_pixels": Row(
            5000,
            lambda c: (
                started(c).loop.loader.collate_fn.keywords["max_padded_pixels"],
                largest_size(c),
            ),
            (5000, (50, 50)),
        ),
    }


def loaders(config: RunConfig) -> tuple[Any, Any]:
    return started(config).loop.loader, started(config).loop.validation.loader


def source(loop: Any, split: str) -> Any:
    loader = loop.loader if split == "train" else loop.validation.loader
    return loader.dataset._samples._source


def folder_of_images(loop: Any, split: str) -> str:
    return source(loop, split).files[0].parents[1].name


def number_of_images(loop: Any, split: str) -> int:
    return len(source(loop, split))


def rate_of(role: str, config: RunConfig, name: str = "initial_lr") -> Any:
    groups = started(config).state.optimizer.param_groups
    return next(group[name] for group in groups if group["role"] == role)


def optimizer_rows() -> dict[str, Row]:
    rows = {}
    for kind, name in (("adamw", "AdamW"), ("sgd", "SGD")):
        key, other = f"train.optimizer[{kind}]", "sgd" if kind == "adamw" else "adamw"
        rows |= {
            f"{key}.kind": Row(
                kind,
                lambda c: type(started(c).state.optimizer).__name__,
                name,
                (f"train.optimizer.kind={other}",),
            ),
            f"{key}.lr": Row(0.5, partial(rate_of, "default")),
            f"{key}.lr_backbone": Row(0.5, partial(rate_of, "backbone")),
            f"{key}.lr_sampling": Row(0.5, partial(rate_of, "sampling")),
            f"{key}.weight_decay": Row(
                0.5,
                lambda c: same(
                    *(group["weight_decay"] for group in started(c).state.optimizer.param_groups)
                ),
            ),
        }
    rows["train.optimizer[sgd].momentum"] = Row(0.5, partial(rate_of, "default", name="momentum"))
    return rows


def schedule_rows() -> dict[str, Row]:
    def schedule(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(started(config).state.schedule, name)

    def kind(config: RunConfig) -> str:
        return type(started(config).state.schedule).__name__

    cosine = ("train.schedule.kind=cosine",)
    twice = ("train.total_batch=2",)  # two steps per epoch
    return {
        "train.schedule[step].kind": Row("step", kind, "StepSchedule", cosine),
        "train.schedule[cosine].kind": Row("cosine", kind, "CosineSchedule"),
        "train.schedule[step].drop_epochs": Row(3, schedule("drop_steps"), 3 * 2, twice),
        "train.schedule[step].warmup_steps": Row(5, schedule("warmup_steps")),
        "train.schedule[cosine].warmup_steps": Row(5, schedule("warmup_steps")),
        "train.epochs": Row(
            7,
            lambda c: same(started(c).loop.end, started(c).state.schedule.total_steps),
            7 * 2,
            (*twice, *cosine),
        ),
        "train.max_steps": Row(
            9,
            lambda c: same(started(c).loop.end, started(c).state.schedule.total_steps),
            given=cosine,
        ),
    }


def train_rows() -> dict[str, Row]:
    def loop(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(started(config).loop, name)

    def state(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(started(config).state, name)

    def plan(name: str) -> Callable[[RunConfig], Any]:
        return lambda config: getattr(started(config).loop.sampler._plan, name)

    def convolutions(config: RunConfig) -> bool:
        weights = [p for p in started(config).state.model.parameters() if p.ndim == 4]
        return all(one.is_contiguous(memory_format=torch.channels_last) for one in weights)

    def frozen_roles(config: RunConfig) -> tuple[str, ...]:
        model = started(config).state.model
        trained = {
            model.parameter_roles()[name] for name, p in model.named_parameters() if p.requires_grad
        }
        return tuple(sorted(set(model.parameter_roles().values()) - trained))

    def seeds(config: RunConfig) -> int:
        run = started(config)
        return same(run.seed, run.loop.seed, run.loop.sampler._seed, run.samples._seed)

    return {
        "data.repeat_threshold": Row(
            0.5, lambda c: started(c).loop.sampler._factors is not None, True
        ),
        "train.total_batch": Row(2, plan("total_batch")),
        "train.micro_batch": Row(1, plan("micro_batch")),
        "train.eval_batch": Row(
            3, lambda c: max(map(len, started(c).loop.validation.loader.batch_sampler))
        ),
        "train.clip_norm": Row(0.5, loop("max_grad_norm")),
        "train.ema_decay": Row(0.5, lambda c: (ema := started(c).state.ema) and ema._decay),
        "train.precision": Row("bfloat16", state("precision")),
        "train.gradient_checkpointing": Row(
            True,
            lambda c: same(
                detector(c).encoder.gradient_checkpointing,
                detector(c).decoder.gradient_checkpointing,
            ),
        ),
        "train.channels_last": Row(True, convolutions),
        "train.deterministic": Row(True, lambda c: started(c).deterministic),
        "train.freeze": Row(("backbone", "sampling"), frozen_roles),
        "train.seed": Row(7, seeds),
        "train.sample_order": Row(
            "buckets", lambda c: type(started(c).loop.sampler).__name__, "BucketSampler"
        ),
        "train.log_every": Row(3, loop("log_every_steps")),
        "train.checkpoint_every": Row(3, loop("checkpoint_every_steps")),
        "train.eval_every_epochs": Row(3, lambda c: started(c).loop.validation.every_epochs),
        **{
            f"train.early_stopping.{name}": Row(
                value,
                lambda c, name=name: getattr(started(c).loop.early_stopping, name),
                given=("train.early_stopping={}",),
            )
            for name, value in {"patience": 3, "min_delta": 0.25}.items()
        },
        "train.validation_loss": Row(True, lambda c: started(c).loop.validation.with_loss),
        "train.timeout_s": Row(
            7.0,
            lambda c: same(started(c).loop.timeout_s, *(one.timeout for one in loaders(c))),
            given=("data.num_workers=1",),
        ),
        "train.trackers": Row(("mlflow", "wandb"), lambda c: tuple(started(c).trackers[1:])),
    }


LIGHT = "model.backbone={kind: mobilenet_v2, weights: none, out_strides: [16]}"  # quick to build
RUN_ROWS = {
    key: replace(row, given=(LIGHT, *row.given))
    for rows in (data_rows(), optimizer_rows(), schedule_rows(), train_rows())
    for key, row in rows.items()
}
