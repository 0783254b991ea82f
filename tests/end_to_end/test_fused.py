"""Blocks of branches, trained, fused, and exported for the plain config."""

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.models import CONFIGS
from helpers.small_run import SMALL_RUN, data_settings
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr import Detector
from deformable_detr.build import build_model
from deformable_detr.cli.training_run import run_training
from deformable_detr.config_io import load_config
from deformable_detr.conversion.weights import export_weights, import_weights
from deformable_detr.layers.reparam import ReparameterizedBlock, fuse_model

# Rates at which every branch has left its start after a few steps.
LEARNING = (
    "train.max_steps=6",
    "train.optimizer={lr: 1e-3, lr_backbone: 2e-2, lr_sampling: 1e-3}",
)
ADDED_GAMMAS = {
    "ac_block": ("ver_bn.weight", "hor_bn.weight"),
    "diverse_branch": ("dbb_avg.avgbn.weight", "dbb_1x1.bn.weight", "dbb_1x1_kxk.bn2.weight"),
}


@pytest.mark.parametrize("kind", ADDED_GAMMAS)
@torch.no_grad()
def test_a_trained_detector_is_the_plain_one_once_it_is_fused(kind, tmp_path):
    files = write_coco_set(tmp_path / "set", num_images=4)
    settings = [*SMALL_RUN, *data_settings(files, files), *LEARNING]
    strides = "model.backbone.conv.strides=[8, 16]"
    config = load_config(CONFIGS / f"backbones/r50_{kind}.yaml", [*settings, strides])
    with torch.enable_grad():
        run_training(config, folder=tmp_path / "run", device=torch.device("cpu"))
    detector = Detector.from_checkpoint(tmp_path / "run" / "last.pth", "cpu")
    blocks = [m for m in detector.model.modules() if isinstance(m, ReparameterizedBlock)]
    assert len(blocks) == 8
    for block in blocks:
        for name in ADDED_GAMMAS[kind]:
            assert block.get_parameter(name).abs().max() > 0.02

    fused = fuse_model(detector.model)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fused.modules())
    plain = build_model(
        load_config(CONFIGS / "deformable_detr_r50.yaml", settings),
        num_classes=detector.label_space.num_classes,
    ).eval()
    import_weights(plain, export_weights(fused, to="official"), source="official")
    images = [torch.randn(3, 64, 96)]
    wanted = detector.model(images).last
    assert wanted.logits.std() > 0.01
    for network in (fused, plain):
        result = network(images).last
        assert (result.logits - wanted.logits).abs().max() < 1e-4
        assert (result.boxes - wanted.boxes).abs().max() < 1e-4
