"""Sanity check: can the model overfit a few images?

Training and validation see the same images, without augmentation and dropout. If AP stays low here,
it will stay low on all data: check labels, boxes, sizes and learning rate before training for days.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from deformable_detr import distributed
from deformable_detr.arguments import checked, require_integer
from deformable_detr.builders import build_dataset
from deformable_detr.coco_json.reading import read_json
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import Overrides, load_config, validate_config
from deformable_detr.data.annotations import read_annotations
from deformable_detr.engine.metrics import read_records
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.run.tracking import Callback
from deformable_detr.files import as_path
from deformable_detr.files.output_folder import OutputFile, require_folder_place
from deformable_detr.finite import to_json
from deformable_detr.messages import shown
from deformable_detr.photos import UNREADABLE, open_image, orientation_of
from deformable_detr.workflows.before_training.settings import settings_of_run
from deformable_detr.workflows.places import BASELINE, input_files, run_folder
from deformable_detr.workflows.session import session
from deformable_detr.workflows.training import TrainingResult, train

logger = logging.getLogger(__name__)
PASSING_AP50 = 0.9
STEPS = 300
_EVALUATED_EVERY = 25  # steps, an epoch
_RATES = {"lr": 1e-3, "lr_backbone": 2e-4, "lr_sampling": 3e-4}
_WARMUP_STEPS = 20
_CLIP_NORM = 1.0
TOO_SMALL_PX = 8.0  # one cell of a level of stride 8, the finest by default


@dataclass(frozen=True)
class OverfitResult:
    """Result of the overfit check.

    Attributes:
        passed: True if the final AP50 is at least 0.9.
        ap50: final AP50.
        passing_step: step of the first evaluation with an AP50 of at least 0.9, of one every 25
            steps; None if there was none.
        losses: losses of the first and the last training record.
        advice: likely cause and remedies; "" if passed.
        training: result of the training run.
    """

    passed: bool
    ap50: float
    passing_step: int | None
    losses: tuple[float, float]
    advice: str
    training: TrainingResult


@checked
def overfit(
    config: str | Path | RunConfig | None = None,
    num_images: int = 4,
    *,
    data: str | Path | None = None,
    overrides: Overrides = (),
    run_dir: str | Path | None = None,
    overwrite: bool = False,
    finetune_from: str | Path | None = None,
    device: str = "auto",
    callback: Callback | None = None,
) -> OverfitResult:
    """Overfit the first training images as a sanity check, which takes minutes, in one process.

    Args:
        config: as for `train`.
        num_images: number of images. They are the first ones with at least one object and at most
            as many as there are queries.
        data: as for `train`.
        overrides: as for `train`.
        run_dir: as for `train`; None for `runs/NAME_overfit`.
        overwrite: as for `train`.
        finetune_from: as for `train`.
        device: as for `train`.
        callback: as for `train`.

    Raises:
        ValueError: there are too few such images, or several processes.
        PreemptedError: as for `train`; the check cannot be resumed, `overwrite` starts it again.
        NonFinitePredictionsError: logits or boxes in an evaluation are infinite or NaN.
    """
    require_integer("num_images", num_images, at_least=1)
    folder = run_folder(run_dir, config, suffix="_overfit", data=data)
    if config is None and data is None:
        config = BASELINE
    known = RunConfig() if config is None else load_config(config, overrides)
    start = None if finetune_from is None else as_path("finetune_from", finetune_from)
    with session(device, timeout_s=known.train.timeout_s) as chosen:
        files = RunFolder(folder)
        files.check(overwrite=overwrite)
        require_folder_place("run_dir", folder)
        settings = settings_of_run(
            config,
            files,
            data=data,
            split_by=None,
            overrides=overrides,
            resume=False,
            finetune_from=start,
            device=chosen,
        ).config
        path = folder.with_name(f"{folder.name}_images.json")
        subset = OutputFile(path, "run_dir", overwrite=overwrite)
        subset.check(inputs=input_files(settings, config, finetune_from))
        settings, content = overfit_config(settings, num_images, subset=path)
        text = to_json(content, "annotation file of --overfit")
        subset.write(lambda temporary: temporary.write_text(text, encoding="utf-8"))
        training = train(
            settings,
            run_dir=folder,
            overwrite=overwrite,
            finetune_from=finetune_from,
            device=device,
            callback=callback,
        )
        return judge_overfit(settings, content, training)


def overfit_config(
    config: RunConfig, count: int, *, subset: Path
) -> tuple[RunConfig, dict[str, Any]]:
    """Build the config and the annotations of an overfit run.

    Args:
        config: config of the run to check.
        count: number of images, chosen as in `overfit`.
        subset: annotation file that the caller writes.

    Raises:
        ValueError: there are too few such images, or several processes.
    """
    if distributed.world_size() > 1:
        raise ValueError(
            f"--overfit must run in one process, got {distributed.world_size()}; "
            "start it without torchrun"
        )
    images, annotations = config.data.train.images, config.data.train.annotations
    if images is None or annotations is None:
        raise ValueError(
            "data.train.images and data.train.annotations must be given for --overfit, got "
            f"{shown(images)} and {annotations}"
        )
    read_annotations(annotations, empty_boxes=config.data.empty_boxes)  # raises if it is invalid
    chosen = _first_images(
        read_json(annotations, "annotation file"),
        count,
        most_objects=config.model.queries.num_queries,
        what=str(annotations),
    )
    content = config.model_dump(mode="json")
    micro_batch = config.train.micro_batch
    data, train, model = content["data"], content["train"], content["model"]
    data["train"] = data["val"] = {"images": str(images), "annotations": str(subset)}
    data["augmentation"] = {
        "kind": "none",
        "size": config.data.eval_size,
        "max_size": config.data.eval_max_size,
    }
    data |= {"repeats": min(STEPS, _EVALUATED_EVERY), "cache_images": True}
    is_turned = any(_is_turned(images / str(image["file_name"])) for image in chosen["images"])
    if is_turned and config.data.exif == "auto":
        data["exif"] = build_dataset(config, "train").exif  # other images may show what is meant
    model["encoder"]["dropout"] = model["decoder"]["dropout"] = 0.0
    train["optimizer"] |= _RATES
    train |= {
        "epochs": STEPS // data["repeats"],
        "max_steps": None,
        "total_batch": count,
        "micro_batch": count if micro_batch == "auto" else gcd(count, micro_batch),
        "sample_order": "global_batches",
        "schedule": {"kind": "cosine", "warmup_steps": _WARMUP_STEPS},
        "clip_norm": _CLIP_NORM,
        "ema_decay": 0.0,
        "eval_every_epochs": 1,
    }
    return validate_config(content, source="--overfit"), chosen


def _is_turned(file: Path) -> bool:
    """Return whether an image has an EXIF orientation; unreadable files are left to training."""
    try:
        with open_image(file) as image:
            return orientation_of(image) != 1
    except UNREADABLE:
        return False


def judge_overfit(
    config: RunConfig, content: Mapping[str, Any], training: TrainingResult
) -> OverfitResult:
    """Judge whether the model overfitted the images; if not, add advice."""
    records = read_records(RunFolder(training.run_dir).metrics)
    evaluations = [one for one in records if one["kind"] == "evaluation"]
    passing = (one["step"] for one in evaluations if one["AP50"] >= PASSING_AP50)
    ap50, step = evaluations[-1]["AP50"], next(passing, None)
    losses = [one["total"] for one in records if one["kind"] == "train"]
    reached = "" if step is None else f" ({PASSING_AP50} reached after {step} steps)"
    numbers = f"AP50 {ap50:.3f}{reached}, loss {losses[0]:.3g} -> {losses[-1]:.3g} in {STEPS} steps"
    passed, advice = ap50 >= PASSING_AP50, ""
    if passed:
        logger.info("overfit check passed: %s; model, labels and boxes are in order", numbers)
    else:
        advice = _where_to_look(content, config)
        logger.warning("overfit check FAILED: %s; %s", numbers, advice)
    return OverfitResult(passed, ap50, step, (losses[0], losses[-1]), advice, training)


def _where_to_look(content: Mapping[str, Any], config: RunConfig) -> str:
    """Return the most likely cause: objects that are too small, else a list of common ones."""
    size = _median_size_px(content, config)
    if size < TOO_SMALL_PX:
        return (
            f"the median object is {size:.1f} px as the model sees it, too small to be found; "
            "raise data.eval_size and the sizes of data.augmentation, or cut the images into tiles"
        )
    return (
        f"the median object is {size:.0f} px as the model sees it; look at the boxes of these "
        "images in pictures, start from pre-trained weights, or try other rates in train.optimizer"
    )


def _median_size_px(content: Mapping[str, Any], config: RunConfig) -> float:
    """Return the median over objects of the square root of area, in pixels of resized images."""
    scales = {}
    for image in content["images"]:
        short, long = sorted((image["height"], image["width"]))
        scales[image["id"]] = min(config.data.eval_size / short, config.data.eval_max_size / long)
    sizes = sorted(
        scales[one["image_id"]] * (one["bbox"][2] * one["bbox"][3]) ** 0.5
        for one in content["annotations"]
    )
    return float(sizes[len(sizes) // 2])


def _first_images(
    content: Mapping[str, Any], count: int, *, most_objects: int, what: str
) -> dict[str, Any]:
    """Select the first `count` images with 1 to `most_objects` objects, and their annotations."""
    objects: dict[int, list[Mapping[str, Any]]] = {}
    for one in content["annotations"]:
        if not one.get("iscrowd") and one["bbox"][2] > 0 and one["bbox"][3] > 0:
            objects.setdefault(one["image_id"], []).append(one)
    usable = [
        image
        for image in sorted(content["images"], key=lambda image: image["id"])
        if 0 < len(objects.get(image["id"], ())) <= most_objects
    ]
    if len(usable) < count:
        raise ValueError(
            f"--overfit must be at most the {len(usable)} images of {what} with 1 to "
            f"{most_objects} objects, as many as queries, got {count}; give fewer, or images cut "
            "into tiles"
        )
    return {
        "images": usable[:count],
        "annotations": [one for image in usable[:count] for one in objects[image["id"]]],
        "categories": content["categories"],
    }
