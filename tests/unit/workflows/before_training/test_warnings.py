"""Warnings before the first step, for settings that do not fit the data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN, data_settings

from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config
from deformable_detr.photos import Image
from deformable_detr.workflows.before_training.warnings import length_warnings, size_warnings
from deformable_detr.workflows.training_parts import TrainingData


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate(("train", "val")):
        write_coco_set(folder / name, num_images=30, size=(256, 300), seed=seed)
    return folder


def opened(folder: Path, *settings: str) -> tuple[RunConfig, TrainingData]:
    train, val = (write_coco_files(folder / name) for name in ("train", "val"))
    config = load_config("deformable_detr_r50", [*SMALL_RUN, *data_settings(train, val), *settings])
    return config, TrainingData.open(config)


def write_coco_files(folder: Path) -> Any:
    return SimpleNamespace(images=folder / "images", annotations=folder / "annotations.json")


def test_other_sizes_of_objects_in_evaluation_are_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = "data.augmentation={kind: zoom_crop, size: 256, scales: [1, 1]}"
    config, data = opened(folder, crops, "data.eval_size=256")

    def read(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Image, "open", read)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert size_warnings(config, data) == []
    small = config.model_copy(update={"data": config.data.model_copy(update={"eval_size": 96})})
    (line,) = size_warnings(small, data)
    assert line == size_warnings(small, data)[0]  # the same sample
    assert torch.get_rng_state().equal(states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    before, _, rest = line.removeprefix("the median object is ").partition(" px in training and ")
    after = float(rest.partition(" px")[0])
    assert 2 < float(before) / after < 3.2  # 256 / 96
    remedy = int(rest.partition("data.eval_size=")[2].partition(",")[0])
    repaired = small.model_copy(
        update={"data": config.data.model_copy(update={"eval_size": remedy})}
    )
    assert size_warnings(repaired, data) == []


@pytest.mark.parametrize(
    ("images", "settings", "expected"),
    [
        (118_000, (), []),
        (1, ("data.repeats=400", "train.epochs=10"), []),  # the quickstart
        (
            160,
            ("data.repeats=400", "train.epochs=10"),
            [
                "data.repeats=400 makes epochs of 16,000 steps, 160,000 in all, for 160 images, "
                "which are seen 4,000 times each; set data.repeats=1"
            ],
        ),
        (
            600,
            ("data.repeats=400", "train.epochs=1"),
            [
                "data.repeats=400 makes epochs of 60,000 steps, 60,000 in all, for 600 images, "
                "which are seen 400 times each; set data.repeats=1"
            ],
        ),
        (
            200,
            ("train.epochs=2000",),
            [
                "train.epochs=2000: epochs of 50 steps, 100,000 in all, for 200 images, which are "
                "seen 2,000 times each; lower train.epochs"
            ],
        ),
        (
            8,
            ("train.epochs=50", "train.schedule.warmup_steps=100"),
            [
                "train.schedule.warmup_steps=100 must be less than the 100 steps of the run, which "
                "never reaches its learning rate; lower it, or raise train.epochs or "
                "train.max_steps"
            ],
        ),
        (
            3,
            (),
            [
                "an epoch has 3 samples, fewer than train.total_batch=4: a step sees some of them "
                "twice; lower it, or raise data.repeats"
            ],
        ),
    ],
)
def test_lengths_that_do_not_fit_the_number_of_images(
    images: int, settings: tuple[str, ...], expected: list[str]
) -> None:
    config = load_config("deformable_detr_r50", ["train.total_batch=4", *settings])
    steps = max(images * config.data.repeats // 4, 1)
    data: Any = SimpleNamespace(train=range(images), sampler=SimpleNamespace(steps_per_epoch=steps))
    assert length_warnings(config, data) == expected
