"""What the preset chooses for sets of many kinds, and what it says."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deformable_detr.config.loading import load_config
from deformable_detr.preset.choice import Choice, Start, choose
from deformable_detr.preset.reasons import WIDTH
from deformable_detr.preset.statistics import SetStatistics, densest_crop, measure

MOST_LINES = 8
BACKBONE = Start("backbone", "data/weights/mobilenet_v2-b0353104.pth")


@dataclass(frozen=True)
class Images:
    """A set of equal images (height, width) with equal numbers of square objects of one size."""

    count: int
    size: tuple[int, int]
    object_px: float = 40
    objects: int = 5
    classes: int = 1

    def measure(self) -> SetStatistics:
        total = self.count * self.objects
        corners = np.zeros((total, 2), np.float32)
        return measure(
            np.array([self.size] * self.count),
            np.concatenate([corners, corners + self.object_px], 1, dtype=np.float32),
            np.arange(total) % self.classes,
            np.full(self.count, self.objects),
            num_classes=self.classes,
        )


def chosen(train: Images, val: Images | None = None, **changed: Any) -> Choice:
    given: dict[str, Any] = {"start": BACKBONE, "device": "cpu", "has_bfloat16": False}
    given["objects_in_crop"] = lambda _: 20
    val = val or Images(10, train.size, train.object_px, train.objects, train.classes)
    return choose(train.measure(), val.measure(), **given | changed)


NUCLEI = Images(128, (256, 256), 15, 31, 2)
PHOTO, TILES = Images(1, (2472, 1724), 41, 366), Images(30, (256, 256), 41, 10)
CASES = {
    "small objects are enlarged as far as the CPU allows": (
        NUCLEI,
        None,
        {
            "data.eval_size": 320,
            "model.backbone.out_strides": [8, 16],
            "model.queries.num_queries": 100,
            "model.queries.center_offset": "box",
            "model.denoising.num_queries": 100,
            "train.epochs": 50,
            "data.repeats": 1,
        },
        "images resized to 320 px: median object 19 px; larger is slower",
    ),
    "crops as large as the tiles of evaluation": (
        PHOTO,
        TILES,
        {
            "model.queries.center_offset": "image",
            "data.augmentation.kind": "zoom_crop",
            "data.augmentation.size": 256,
            "data.augmentation.scales": (1.0, 1.0),
            "data.eval_size": 256,
            "data.repeats": 400,
            "model.queries.num_queries": 100,
        },
        "crops of 256 px, resized to 256 px: median object 41 px",
    ),
    "80 classes, 32 images": (
        Images(32, (480, 640), 46, 9, 80),
        None,
        {"data.eval_size": 288, "data.repeats": 4, "train.epochs": 25},
        "objects of 28 to 28 px",
    ),
    "large objects get a coarse level": (
        Images(50, (480, 640), 300),
        None,
        {"model.backbone.out_strides": [8, 16, 32], "model.neck.num_levels": 3},
        "strides 8, 16, 32: objects of 160 to 160 px",
    ),
    "one image": (
        Images(1, (300, 400)),
        None,
        {"data.repeats": 100, "train.epochs": 12, "data.augmentation.kind": "coco"},
        "objects of 34 to 34 px",
    ),
    "no objects": (
        Images(20, (300, 400), objects=0),
        None,
        {"data.eval_size": 288, "model.queries.num_queries": 100},
        "there is no object to go by",
    ),
    "huge images are bounded": (
        Images(40, (6000, 9000), 50),
        None,
        {"data.eval_size": 256, "data.cache_images": False},
        "median object 2 px; larger is slower",
    ),
    "300 objects per image": (
        Images(50, (512, 512), 20, 300),
        None,
        {"model.queries.num_queries": 450},
        "450 for at most 300 objects per image",
    ),
    "more objects than the most queries": (
        Images(4, (512, 512), 20, 1000),
        None,
        {"model.queries.num_queries": 900},
        "900 for at most 1,000 objects per image, too few",
    ),
    "20 objects": (Images(4, (256, 256)), None, {"train.epochs": 12, "data.repeats": 25}, "steps"),
    "10,000 images": (
        Images(10_000, (480, 640), 60, 2),
        None,
        {"train.epochs": 10, "train.eval_every_epochs": 1, "data.repeats": 1},
        "25,000 steps of 4: 10 epochs; evaluated after every 1",
    ),
    "a large validation set is seldom evaluated": (
        Images(100, (480, 640), 60),
        Images(20_000, (480, 640), 60),
        {"train.epochs": 57, "train.eval_every_epochs": 57},
        "evaluated after every 57",
    ),
    "tiles in training, photos in evaluation": (
        TILES,
        Images(2, (768, 768), 41, 90),
        {"data.eval_size": 672, "data.augmentation.sizes": (230, 256, 282)},
        "images resized to 256 px, 672 in evaluation",
    ),
}


@pytest.mark.parametrize(("train", "val", "expected", "reason"), CASES.values(), ids=CASES)
def test_the_choice_for_a_set(
    train: Images, val: Images | None, expected: dict[str, Any], reason: str
) -> None:
    choice = chosen(train, val)
    config = load_config("quickstart", choice.settings)  # a valid config
    found = {key: _at(config, key) for key in expected}
    as_tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in expected.items()}
    assert found == as_tuples
    assert reason in "\n".join(choice.reasons)
    assert len(choice.reasons) <= MOST_LINES
    assert max(map(len, choice.reasons)) <= WIDTH
    assert not any("..." in line for line in choice.reasons)


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_a_gpu_gets_larger_images_and_batches_at_rates_by_the_square_root() -> None:
    settings = chosen(NUCLEI, device="gpu").settings
    assert settings["data.eval_size"] == 512  # twice the image
    assert settings["train.total_batch"] == 8
    assert settings["train.optimizer"]["lr"] == pytest.approx(1e-3 * 2**0.5, abs=1e-5)
    tiny = chosen(Images(40, (6000, 9000), 50), device="gpu").settings
    assert tiny["model.backbone.out_strides"] == [4, 8, 16]


def test_low_precision_where_it_is_fast() -> None:
    for has_bfloat16, precision in ((True, "bfloat16"), (False, "float32")):
        choice = chosen(NUCLEI, has_bfloat16=has_bfloat16)
        assert choice.settings["train.precision"] == precision
        assert any(line.endswith(f"; {precision}") for line in choice.reasons)


@pytest.mark.parametrize(
    ("start", "expected", "reason"),
    [
        (
            BACKBONE,
            {"model.backbone.weights": BACKBONE.file},
            "start    the backbone of mobilenet_v2-b0353104.pth",
        ),
        (
            Start("random"),
            {"model.backbone.weights": "none", "model.backbone.norm": "batch_norm"},
            "start    random, learns slowly; `deformable-detr data weights` fetches weights",
        ),
        (
            Start("checkpoint", "/runs/" + "x" * 90 + ".pth"),
            {},
            f"start    the detector of ...{'x' * 41}.pth",
        ),
    ],
)
def test_the_start_and_what_it_changes(start: Start, expected: dict[str, Any], reason: str) -> None:
    choice = chosen(NUCLEI, start=start)
    assert {key: choice.settings.get(key) for key in expected} == expected
    assert choice.reasons[-1] == reason
    changes_model = any(key.startswith("model.") for key in choice.settings)
    assert changes_model == (start.kind != "checkpoint")  # its weights must fit
    fast = start.kind != "checkpoint"
    assert choice.settings["train.optimizer"]["lr"] == (1e-3 if fast else 2.5e-4)


def test_statistics_of_images_of_two_sizes() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 45, 10], [0, 0, 40, 40]], np.float32)
    found = measure(
        np.array([[100, 200], [400, 100]]),
        boxes,
        np.array([0, 2, 2]),
        np.array([2, 1]),
        num_classes=3,
    )
    assert (found.num_images, found.short_side, found.long_side) == (2, 100, 300)
    assert (found.object_px, found.most_objects, found.class_counts) == (20, 2, (1, 0, 2))
    assert found.medium == pytest.approx(0.2)  # of 0.1, 0.2 and 0.4
    assert found.object_share == pytest.approx(20 / np.sqrt(100 * 200))
    with pytest.raises(ValueError, match="at least one image, got none"):
        measure(np.zeros((0, 2)), boxes[:0], np.zeros(0, int), np.zeros(0, int), num_classes=1)


def test_the_densest_crop_counts_centers_within_one_image() -> None:
    centers = np.array([[10, 10], [20, 10], [90, 90], [10, 10], [12, 10], [19, 10]], np.float32)
    boxes = np.concatenate([centers - 4, centers + 4], 1)
    for side, most in ((4, 2), (20, 3), (500, 3)):
        assert densest_crop(boxes, np.array([3, 0, 3]), side=side) == most
    assert densest_crop(boxes[:0], np.array([0]), side=9) == 0
