"""Blocks of branches, trained, fused, and exported for the plain config."""

from pathlib import Path

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.models import CONFIGS, randomize_weights
from helpers.small_run import SMALL_RUN, data_settings
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr import Detector
from deformable_detr.builders import build_model
from deformable_detr.config import RunConfig
from deformable_detr.config.loading import load_config
from deformable_detr.conversion.weights import export_weights, import_weights
from deformable_detr.data.coco import CocoDataset
from deformable_detr.engine.checkpoints.checkpoint import Checkpoint, save_checkpoint
from deformable_detr.environment import current_versions
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.layers.reparam.fuse import fuse_model
from deformable_detr.workflows.training import train

# Learning rates at which every branch has moved away from its initialization after a few steps.
LEARNING = (
    "train.max_steps=6",
    "train.optimizer={lr: 1e-3, lr_backbone: 1e-3, lr_sampling: 1e-3}",
)
ADDED_GAMMAS = {
    "ac_block": ("ver_bn.weight", "hor_bn.weight"),
    "diverse_branch": ("dbb_avg.avgbn.weight", "dbb_1x1.bn.weight", "dbb_1x1_kxk.bn2.weight"),
}


def save_plain_detector(path: Path, config: RunConfig, files: CocoFiles) -> None:
    """Save a baseline with random weights and statistics, whose features have a normal scale."""
    space = CocoDataset(files.images, files.annotations).label_space
    model = build_model(config, num_classes=space.num_classes)
    randomize_weights(model)
    checkpoint = Checkpoint(
        model=model.state_dict(),
        ema=None,
        optimizer={},
        epoch=1,
        step=1,
        best_ap=None,
        label_space=space,
        config=config.model_dump(mode="json"),
        versions=current_versions(),
    )
    save_checkpoint(path, checkpoint)


@pytest.mark.parametrize("kind", ADDED_GAMMAS)
@torch.no_grad()
def test_a_trained_detector_equals_the_plain_one_once_fused(kind, tmp_path):
    files = write_coco_set(tmp_path / "set", num_images=4)
    settings = [*SMALL_RUN, *data_settings(files, files), *LEARNING]
    strides = "model.backbone.conv.strides=[8, 16]"
    config = load_config(CONFIGS / f"backbones/r50_{kind}.yaml", [*settings, strides])
    plain_config = load_config(CONFIGS / "deformable_detr_r50.yaml", settings)
    baseline = tmp_path / "plain.pth"
    save_plain_detector(baseline, plain_config, files)
    with torch.enable_grad():
        train(config, run_dir=tmp_path / "run", device="cpu", finetune_from=baseline)
    detector = Detector.from_checkpoint(tmp_path / "run" / "last.pth", "cpu")
    blocks = [m for m in detector.model.modules() if isinstance(m, ReparameterizedBlock)]
    assert len(blocks) == 8
    for block in blocks:
        for name in ADDED_GAMMAS[kind]:
            assert block.get_parameter(name).abs().max() > 0.002

    fused = fuse_model(detector.model)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fused.modules())
    plain = build_model(plain_config, num_classes=detector.label_space.num_classes).eval()
    import_weights(plain, export_weights(fused, to="official"), source="official")
    images = [torch.randn(3, 64, 96)]
    wanted = detector.model(images).last
    (features,) = detector.model.backbone(images[0][None])
    assert wanted.logits.std() > 0.01
    assert 0.1 < features.abs().max() < 1000
    for network in (fused, plain):
        (own,) = network.backbone(images[0][None])
        assert (own - features).abs().max() < 1e-4 * features.abs().max()
        result = network(images).last
        assert (result.logits - wanted.logits).abs().max() < 1e-4
        assert (result.boxes - wanted.boxes).abs().max() < 1e-4
