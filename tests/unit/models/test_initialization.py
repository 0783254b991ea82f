"""Initial values of every parameter outside the backbone: those of the official code."""

import math
import re
from functools import cache

import pytest
import torch
from helpers.models import small_detector
from torch import Tensor

from deformable_detr.models.deformable_detr import DeformableDETR

XAVIER, DEFAULT, DEFAULT_BIAS, NORMAL, UNIFORM = (
    "xavier",
    "default",
    "default bias",
    "normal",
    "[0, 1]",
)
DIRECTIONS = "directions"
ATTENTION = {
    r"sampling_offsets\.weight": 0.0,
    r"sampling_offsets\.bias": DIRECTIONS,
    r"attention_weights\.(weight|bias)": 0.0,
    r"(value_proj|output_proj)\.weight": XAVIER,
    r"(value_proj|output_proj)\.bias": 0.0,
}
LAYER = {
    **{rf"(self_attn|cross_attn)\.{name}": rule for name, rule in ATTENTION.items()},
    r"self_attn\.(in_proj_weight|out_proj\.weight)": XAVIER,
    r"self_attn\.(in_proj_bias|out_proj\.bias)": 0.0,
    r"linear[12]\.weight": XAVIER,
    r"linear[12]\.bias": DEFAULT_BIAS,
    r"norm[123]\.weight": 1.0,
    r"norm[123]\.bias": 0.0,
}
CLASS_HEAD = {r"\.weight": DEFAULT, r"\.bias": -4.59511985}
BOX_HEAD = {
    r"\.mlp\.layers\.[01]\.weight": DEFAULT,
    r"\.mlp\.layers\.[01]\.bias": DEFAULT_BIAS,
    r"\.mlp\.layers\.2\.weight": 0.0,
    r"\.mlp\.layers\.2\.bias": 0.0,
}
RULES = {
    r"neck\.projections\.\d\.weight": XAVIER,
    r"neck\.projections\.\d\.bias": 0.0,
    r"neck\.norms\.\d\.weight": 1.0,
    r"neck\.norms\.\d\.bias": 0.0,
    r"memory_builder\.level_embed": NORMAL,
    r"memory_builder\.position\.(column|row)_embed\.weight": UNIFORM,
    **{rf"(encoder|decoder)\.layers\.\d\.{name}": rule for name, rule in LAYER.items()},
    r"queries\.embed": NORMAL,
    r"queries\.reference_points\.weight": XAVIER,
    r"queries\.reference_points\.bias": 0.0,
    r"queries\.(memory|query)_proj\.weight": XAVIER,
    r"queries\.(memory|query)_proj\.bias": DEFAULT_BIAS,
    r"queries\.(memory|query)_norm\.weight": 1.0,
    r"queries\.(memory|query)_norm\.bias": 0.0,
    **{rf"(queries\.class_head|decoder\.class_heads\.\d){n}": r for n, r in CLASS_HEAD.items()},
    **{rf"(queries\.box_head|decoder\.box_heads\.\d){n}": r for n, r in BOX_HEAD.items()},
}
SIZE_LOGITS = {"multi_scale": [-2.0], "refine": [-2.0, 0.0, 0.0], "two_stage": [0.0] * 3}


@cache
def built(variant: str) -> DeformableDETR:
    # Widths that differ, so that the bounds of the rules do too.
    return small_detector(variant, "model.encoder.ffn_dim=96", "model.decoder.ffn_dim=96")


def assert_uniform(value: Tensor, bound: float, fan: int) -> None:
    assert value.abs().max() <= bound
    if value.numel() >= 64:
        assert value.abs().max() > 0.9 * bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)
    assert value.unique().numel() > 1, fan


def check(rule: str | float, value: Tensor, fan_in: int) -> None:
    """Check one parameter against its rule; `fan_in` is that of the weight beside a bias."""
    if isinstance(rule, float):
        torch.testing.assert_close(value, torch.full_like(value, rule))
        return
    match rule:
        case "xavier":
            fans = value[0].numel() + value[:, 0].numel()
            assert_uniform(value, math.sqrt(6 / fans), fans)
        case "default" | "default bias":
            assert_uniform(value, 1 / math.sqrt(fan_in), fan_in)
        case "normal":
            assert value.mean().item() == pytest.approx(0, abs=0.2)
            assert value.std().item() == pytest.approx(1, rel=0.2)
        case "[0, 1]":
            assert value.min() >= 0
            assert value.max() <= 1
            assert value.mean().item() == pytest.approx(0.5, abs=0.05)
        case "directions":
            # Four heads, four levels, four points, (x, y): right, down, left, up, in cells.
            bias = value.view(4, 4, 4, 2)
            heads = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
            expected = heads[:, None, None] * torch.arange(1, 5)[:, None]
            torch.testing.assert_close(bias, expected.expand(-1, 4, -1, -1))


@pytest.mark.parametrize("variant", ["multi_scale", "refine", "two_stage", "learned_position"])
def test_every_parameter_starts_as_in_the_official_code(variant: str) -> None:
    detector = built(variant)
    parameters = {n: p.detach() for n, p in detector.named_parameters() if "backbone." not in n}
    for name, value in parameters.items():
        (rule,) = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, name)]
        weight = parameters.get(name.removesuffix("bias") + "weight", value)
        if re.search(r"decoder\.box_heads\.\d\.mlp\.layers\.2\.bias", name):
            value = value[:2]  # the size is checked below
        check(rule, value, weight[0].numel() if weight.ndim > 1 else 1)
    sizes = [head.output.bias.detach()[2:].tolist() for head in detector.decoder.box_heads]
    wanted = SIZE_LOGITS.get(variant, [-2.0])
    assert sizes == [[logit, logit] for logit in wanted]


def test_every_rule_has_a_parameter() -> None:
    names = [
        name
        for variant in ("refine", "two_stage", "learned_position")
        for name, _ in built(variant).named_parameters()
    ]
    assert [p for p in RULES if not any(re.fullmatch(p, name) for name in names)] == []
