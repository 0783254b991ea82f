"""Small detectors for tests."""

from pathlib import Path

import torch
from torch import nn

from deformable_detr.builders import build_model
from deformable_detr.config import ResNetConfig, RunConfig, TimmConfig
from deformable_detr.config.loading import load_config
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.backbones.timm_adapter import TimmBackbone
from deformable_detr.models.backbones.torchvision_adapter import build_mobilenet_v2, build_resnet
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.structures import Target

CONFIGS = Path(__file__).parents[2] / "configs"
VARIANTS = {
    "single_scale": "deformable_detr_r50_single_scale",
    "single_scale_dc5": "deformable_detr_r50_single_scale_dc5",
    "multi_scale": "deformable_detr_r50",
    "refine": "deformable_detr_r50_refine",
    "two_stage": "deformable_detr_r50_two_stage",
    "learned_position": "deformable_detr_r50_learned_position",
}
_REDUCED = (
    "model.backbone.weights=none",
    "model.embed_dim=64",
    "model.attention.num_heads=4",
    "model.encoder.num_layers=2",
    "model.encoder.ffn_dim=64",
    "model.decoder.num_layers=3",
    "model.decoder.ffn_dim=64",
    "model.queries.num_queries=10",
)
# Settings that make DINO of the two-stage variant, and those of its parts without denoising.
DINO_PARTS = (
    "model.queries.content=learned",
    "model.queries.ranking=class",
    "model.decoder.position=reference",
    "model.decoder.look_forward_twice=true",
)
DINO = (
    "model.position={kind: sine, temperature: 20, offset: 0}",
    *("model.encoder.dropout=0", "model.decoder.dropout=0"),
    *DINO_PARTS,
    "model.denoising={}",
)

# Settings of backbones in the configs, for tests that build only a backbone.
STRIDES = (8, 16, 32)
BACKBONE = {"out_strides": STRIDES, "freeze_up_to_stride": 4}


def resnet(depth: int, **options: object) -> Backbone:
    return build_resnet(depth, **{**BACKBONE, **options})


def mobilenet_v2(**options: object) -> Backbone:
    return build_mobilenet_v2(**{**BACKBONE, **options})


def timm_backbone(name: str, **options: object) -> Backbone:
    return TimmBackbone(name, **{**BACKBONE, **options})


def reduced_config(name: str, *overrides: str) -> RunConfig:
    """Load a config of `configs/` with a model small enough for a test."""
    config = load_config(CONFIGS / f"{name}.yaml")
    lighter = []
    match config.model.backbone:
        case ResNetConfig(dilation=False):
            lighter = ["model.backbone.depth=18"]
        case TimmConfig(name="convnext_tiny"):
            lighter = ["model.backbone.name=convnext_atto"]
    return load_config(CONFIGS / f"{name}.yaml", [*_REDUCED, *lighter, *overrides])


def small_detector(
    variant: str, *overrides: str, num_classes: int = 5, seed: int = 0
) -> DeformableDETR:
    """Build a reduced detector of one of `VARIANTS`, with weights from a seed."""
    torch.manual_seed(seed)
    config = reduced_config(VARIANTS[variant], *overrides)
    return build_model(config, num_classes=num_classes)


@torch.no_grad()
def randomize_weights(model: nn.Module, *, seed: int = 0) -> None:
    """Randomize all weights and statistics with moderate values; none keeps its initial one."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = noise.abs() + 0.5
        elif tensor.ndim > 1:
            value = noise * tensor[0].numel() ** -0.5
        elif name.endswith("weight"):  # gamma of a norm
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        tensor.copy_(value)


def make_target(*labels: int, image_id: int = 0, seed: int = 0) -> Target:
    """Make a target with one random box per label."""
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.2 + 0.4 * torch.rand(len(labels), 4, generator=generator)
    return Target(boxes, torch.tensor(labels, dtype=torch.int64), image_id, (64, 64))
