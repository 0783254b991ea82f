"""A training step of DINO against golden values of its official code, computed on a CPU in float32.

The model is the published one, with ResNet-50 and 91 classes; its weights, and the images, follow
from their names. Denoising has four groups and no noise.
"""

from dataclasses import dataclass

import pytest
import torch
from helpers.dino_golden import golden_images, golden_weight
from helpers.dino_weights import value_of_name
from torch import Tensor

from deformable_detr import build_criterion, build_model, load_config, official_losses
from deformable_detr.structures import ModelOutput, Target

DINO = (
    "model.backbone.weights=none",
    "model.position={kind: sine, temperature: 20, offset: 0}",
    "model.encoder={ffn_dim: 2048, dropout: 0}",
    "model.queries={kind: two_stage, num_queries: 100, content: learned, ranking: class}",
    "model.decoder={ffn_dim: 2048, dropout: 0, box_refinement: true, position: reference, "
    "look_forward_twice: true, share_heads: true}",
    "model.denoising={num_queries: 8, label_noise: 0}",
    "loss.class_weight=1",
)
# Class, L1 and GIoU loss by the official suffix.
LOSSES = {
    "": (129.07887, 0.78206, 1.54521),
    "_dn": (5.64607, 1.01659, 1.65019),
    "_0": (77.73093, 0.42771, 0.87354),
    "_dn_0": (3.18946, 0.39300, 1.27736),
    "_interm": (105.05125, 0.35271, 0.87066),
}
TOTAL, TOTAL_WITHOUT_OBJECTS = 829.90088, 2170.3628
GRADIENT_NORM = 9341.6
GRADIENT_NORMS = {
    "queries.content": 11.6843,
    "denoising.label_embed.weight": 0.817543,
    "decoder.position_head.layers.0.weight": 210.571,
    "decoder.norm.weight": 199.810,
    "decoder.box_heads.0.mlp.layers.2.weight": 126.587,
    "queries.memory_proj.weight": 520.558,
    "encoder.layers.0.linear1.weight": 575.488,
    "queries.box_head.mlp.layers.2.weight": 9.6775,
}
OBJECTS = (
    Target(torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.3, 0.6, 0.2, 0.2]]), torch.tensor([3, 7])),
    Target(torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([1])),
)
NOTHING = (Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),) * 2


@dataclass
class Step:
    output: ModelOutput
    losses: dict[str, float]
    total: float
    gradients: dict[str, Tensor | None]


@pytest.fixture(scope="module")
def steps() -> dict[str, Step]:
    """The step with objects, and the one without."""
    config = load_config("deformable_detr_r50_two_stage", DINO)
    model = build_model(config, num_classes=91).train()
    state = {name: golden_weight(name, one.shape) for name, one in model.state_dict().items()}
    model.load_state_dict(state)
    model.denoising.box_noise = 0.0
    steps = {}
    for name, targets in (("objects", OBJECTS), ("nothing", NOTHING)):
        model.zero_grad()
        output = model(golden_images(), targets)
        result = build_criterion(config)(output, targets)
        result.losses["total"].backward()
        values = official_losses(output, targets, result)
        steps[name] = Step(
            output,
            {key: float(value) for key, value in values.items()},
            result.losses["total"].item(),
            {key: one.grad for key, one in model.named_parameters() if one.requires_grad},
        )
    return steps


def test_the_formula_of_the_tensors() -> None:
    golden = [-0.482065, 1.609939, -0.006117, -0.227333]
    assert value_of_name("x", (4,)).tolist() == pytest.approx(golden, abs=1e-6)


def test_losses_are_the_official_ones(steps) -> None:
    step = steps["objects"]
    for suffix, golden in LOSSES.items():
        found = [step.losses[f"loss_{term}{suffix}"] for term in ("ce", "bbox", "giou")]
        assert found == pytest.approx(golden, rel=1e-5, abs=1e-5), suffix
    assert step.total == pytest.approx(TOTAL, abs=1e-3)
    last = step.output.denoised.layers[-1]
    assert last.logits.shape == (2, 4 * 2 * 2, 91)
    assert last.logits.sum().item() == pytest.approx(-5844.632, rel=1e-6)
    assert last.boxes.sum().item() == pytest.approx(57.3135, rel=1e-5)


def test_gradient_norms_are_the_official_ones(steps) -> None:
    gradients = steps["objects"].gradients
    norms = {name: gradients[name].norm().item() for name in GRADIENT_NORMS}
    assert norms == pytest.approx(GRADIENT_NORMS, rel=1e-3)
    together = torch.nn.utils.get_total_norm(gradients.values()).item()
    assert together == pytest.approx(GRADIENT_NORM, rel=1e-3)


def test_a_step_without_objects_is_the_official_one(steps) -> None:
    step = steps["nothing"]
    assert step.total == pytest.approx(TOTAL_WITHOUT_OBJECTS, abs=1e-3)
    assert step.losses["loss_ce_dn"] == 0
    assert [name for name, one in step.gradients.items() if one is None] == []
    assert not step.gradients["denoising.label_embed.weight"].any()
