import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny_training import tiny_batch, tiny_detector
from torch import nn

from deformable_detr.engine.failures.causes import (
    WeightNorm,
    likely_cause,
    non_finite_weights,
    weight_norm,
)
from deformable_detr.engine.failures.replay import Examination

HEALTHY = Examination(1.5, "", "", "", 0.0, {"a": 1.0})
OVERFLOW = replace(HEALTHY, loss=math.nan, forward="the output of x (Linear)", largest_input=7e4)
STEADY = (WeightNorm(0, 10.0), WeightNorm(20, 12.0))


def explain(examination: Examination = OVERFLOW, **changes: object) -> str:
    facts = {
        "in_float32": None,
        "bad_weights": [],
        "weight_norms": STEADY,
        "learning_rates": {"default": 2e-4, "backbone": 2e-5},
    }
    batch = tiny_batch([7, 8], [1, 0])
    return likely_cause(batch, examination=examination, **{**facts, **changes})


def test_bad_images_are_named_with_their_counts() -> None:
    batch = tiny_batch([7, 8], [1, 0])
    batch.images.images[1, 2, 3, 4:6] = math.nan
    text = likely_cause(
        batch,
        examination=OVERFLOW,
        in_float32=None,
        bad_weights=["w"],
        weight_norms=STEADY,
        learning_rates={},
    )
    assert text.startswith("image 8 has 2 non-finite values of 192")
    assert "image 7" not in text


def test_diverged_weights_are_attributed_to_the_learning_rate() -> None:
    grown = (*STEADY, WeightNorm(21, 1e9))
    text = explain(weight_norms=grown, bad_weights=["w"])
    assert "with up to 0.0002 the 2-norm of all weights grew from 10 after step 0 to 1e+09" in text
    assert "after step 21" in text


def test_normal_growth_of_weights_is_not_a_cause() -> None:
    assert "learning rate is too high" not in explain(weight_norms=(*STEADY, WeightNorm(21, 99.0)))


def test_non_finite_weights_are_named() -> None:
    text = explain(bad_weights=["a", "b", "c", "d", "e"])
    assert "weights were not finite before the step: a, b, c and 2 more" in text
    assert "before the step: a;" in explain(bad_weights=["a"])


def test_low_precision_is_the_cause_only_if_float32_is_finite() -> None:
    assert "the precision is too low" in explain(in_float32=HEALTHY)
    assert "the output of x (Linear)" in explain(in_float32=HEALTHY)
    assert "the precision is too low" not in explain(in_float32=OVERFLOW)


def test_otherwise_the_place_of_the_first_non_finite_value_is_named() -> None:
    assert "fails at the output of x (Linear), whose inputs reach 7e+04" in explain()
    in_backward = replace(HEALTHY, backward="the gradient of y", gradient_norms={"y": math.nan})
    assert "the loss is 1.5, but the backward pass fails at the gradient of y" in explain(
        in_backward
    )
    too_large = replace(HEALTHY, gradient_norms={"a": 3e38, "b": 3e38})
    assert "together they are too large for float32" in explain(too_large)


def test_no_cause_is_found_if_the_replay_is_finite() -> None:
    assert explain(HEALTHY).startswith("not found: the same micro-batch gives finite values")


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_the_weight_norm_is_that_of_all_weights_as_one_vector(scale: float) -> None:
    model = tiny_detector()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    together = torch.cat(
        [parameter.detach().double().flatten() for parameter in model.parameters()]
    )
    assert weight_norm(model) == pytest.approx(together.norm().item(), rel=1e-6)


def test_the_weight_norm_leaves_out_non_finite_elements() -> None:
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, math.nan], [math.inf, 4.0]]))
    assert weight_norm(model) == 5.0


def test_running_statistics_changed_by_a_failed_forward_pass_are_not_bad_weights() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    assert non_finite_weights(model) == []
    model(torch.full((3, 2), math.nan))
    assert not model[0].running_mean.isfinite().any()
    assert non_finite_weights(model) == []
    with torch.no_grad():
        model[0].weight[0] = math.inf
    assert non_finite_weights(model) == ["0.weight"]
