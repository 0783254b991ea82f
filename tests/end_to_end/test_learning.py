"""Training from a config and files on disk reaches a high average precision."""

import json

import pytest
from helpers.coco_files import write_coco_set

from deformable_detr.config.loading import load_config
from deformable_detr.workflows.training import train

# A detector that is trained from scratch on the same four images.
OVERFIT = (
    "model.embed_dim=64",
    "model.attention.num_heads=4",
    "model.backbone={kind: resnet, depth: 18, out_strides: [8, 16], freeze_up_to_stride: 0,"
    " norm: batch_norm, weights: none}",
    "model.neck.num_levels=2",
    "model.encoder={num_layers: 1, ffn_dim: 128, dropout: 0}",
    "model.decoder={num_layers: 2, ffn_dim: 128, dropout: 0}",
    "model.queries.num_queries=20",
    "data.augmentation={kind: coco, sizes: [96], max_size: 128, pre_crop_sizes: [96],"
    " crop_sizes: [128, 128]}",
    "data.eval_size=96",
    "data.num_workers=0",
    "train.total_batch=4",
    "train.micro_batch=4",
    "train.optimizer={lr: 2e-3, lr_backbone: 2e-3, lr_sampling: 1e-3}",
    "train.schedule={kind: cosine, warmup_steps: 20}",
    "train.clip_norm=1",
    "data.repeats=90",
    "train.epochs=4",
    "train.eval_every_epochs=4",
    "train.ema_decay=0.9",
)


@pytest.mark.slow
def test_four_images_are_overfit(tmp_path):
    files = write_coco_set(tmp_path / "set", num_images=4, size=(96, 128), seed=1)
    paths = [
        f"data.{split}.{key}={getattr(files, key)}"
        for split in ("train", "val")
        for key in ("images", "annotations")
    ]
    config = load_config("deformable_detr_r50_two_stage", [*OVERFIT, *paths])
    train(config, run_dir=tmp_path / "run", device="cpu")
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    evaluations = [r for r in map(json.loads, records) if r["kind"] == "evaluation"]
    assert evaluations[-1]["AP"] > 0.9
