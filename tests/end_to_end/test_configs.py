"""Every config trains, evaluates and saves, at a reduced size."""

import json

import pytest
from helpers.coco_files import write_coco_set
from helpers.models import reduced_config
from helpers.shared_data import shared_data

from deformable_detr.config.loading import config_names
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.workflows.training import train

SMALL_RUN = (
    "data.num_workers=0",
    "data.repeats=1",
    "data.eval_size=64",
    "data.eval_max_size=96",
    "train.total_batch=2",
    "train.micro_batch=1",
    "train.max_steps=1",
    "train.schedule.warmup_steps=0",
)
SMALL_AUGMENTATION = {
    "coco": "{sizes: [64], max_size: 96, pre_crop_sizes: [64], crop_sizes: [48, 64]}",
    "zoom_crop": "{size: 64}",
}


def paths(images, annotations):
    return [
        f"data.{split}.{key}={value}"
        for split in ("train", "val")
        for key, value in (("images", images), ("annotations", annotations))
    ]


def small_config(name, *overrides):
    kind = reduced_config(name).data.augmentation.kind
    augmentation = f"data.augmentation={SMALL_AUGMENTATION[kind]}"
    return reduced_config(name, *SMALL_RUN, augmentation, *overrides)


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.parametrize("name", config_names())
def test_every_config_takes_a_step_and_is_saved(name, tmp_path):
    files = write_coco_set(tmp_path / "set", num_images=3, size=(96, 128))
    config = small_config(name, *paths(files.images, files.annotations))
    train(config, run_dir=tmp_path / "run", device="cpu")
    assert load_checkpoint(tmp_path / "run" / "last.pth").step == 1
    (evaluation,) = records(tmp_path / "run", "evaluation")
    assert 0 <= evaluation["AP"] <= 1


def test_a_subset_of_coco_trains_twenty_steps_and_is_evaluated(tmp_path):
    folder = shared_data("tinycoco")
    overrides = [
        f"data.train.images={folder / 'images/train2017'}",
        f"data.train.annotations={folder / 'annotations/instances_train2017.json'}",
        f"data.val.images={folder / 'images/val2017'}",
        f"data.val.annotations={folder / 'annotations/instances_val2017.json'}",
        "train.total_batch=8",
        "train.micro_batch=4",
        "train.max_steps=20",
        "train.eval_every_epochs=10",
        "train.log_every=1",
        "train.optimizer={lr: 1e-3, lr_sampling: 1e-3}",
    ]
    config = small_config("deformable_detr_r50_two_stage", *overrides)
    train(config, run_dir=tmp_path / "run", device="cpu")
    totals = [record["total"] for record in records(tmp_path / "run", "train")]
    assert len(totals) == 20
    assert sum(totals[-5:]) < 0.9 * sum(totals[:5])
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pth")
    assert checkpoint.label_space.num_classes == 80
    assert checkpoint.label_space.category_ids[-1] == 90
    assert len(records(tmp_path / "run", "evaluation")) == 1
