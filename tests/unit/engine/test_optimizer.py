from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.recipe import paper_groups
from torch import nn
from torch.optim import Optimizer

from deformable_detr.engine.optimizer import (
    adamw,
    restore_optimizer,
    scale_learning_rates,
    sgd,
)


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2).requires_grad_(False)
        self.body = nn.Linear(2, 3)
        self.sampling_offsets = nn.Linear(3, 5)
        self.head = nn.Linear(3, 7)

    def parameter_roles(self) -> dict[str, str]:
        roles = {"stem": "backbone", "body": "backbone", "sampling_offsets": "sampling"}
        return {
            name: roles.get(name.split(".")[0], "default") for name, _ in self.named_parameters()
        }


def test_every_trainable_parameter_is_in_exactly_one_group_with_the_rate_of_its_role() -> None:
    model = Parts()
    groups = paper_groups(model)
    rates = {group["role"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {"default": (2e-4, 1e-4), "backbone": (2e-5, 1e-4), "sampling": (2e-5, 1e-4)}
    sizes = {group["role"]: sum(p.numel() for p in group["params"]) for group in groups}
    assert sizes == {"default": 28, "backbone": 9, "sampling": 20}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)


def test_a_role_without_trainable_parameters_makes_no_group() -> None:
    model = Parts()
    model.body.requires_grad_(False)
    assert [group["role"] for group in paper_groups(model)] == ["default", "sampling"]


def test_a_role_without_a_rate_raises() -> None:
    with pytest.raises(
        ValueError, match=r"role of parameter body\.weight must be one of default, .* 'backbone'"
    ):
        paper_groups(Parts(), lr_by_role={"sampling": 1e-5})


def test_a_parameter_without_a_role_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parts, "parameter_roles", lambda self: {})
    with pytest.raises(ValueError, match=r"body\.weight must be one of .* got None"):
        paper_groups(Parts())


def test_adamw_decays_every_parameter() -> None:
    model = Parts()
    optimizer = adamw(paper_groups(model, lr=0.5, weight_decay=0.25))
    bias = model.head.bias.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.head.bias.detach(), bias * (1 - 0.5 * 0.25))


def test_sgd_has_momentum() -> None:
    model = Parts()
    optimizer = sgd(paper_groups(model, lr=1.0, weight_decay=0.0), momentum=0.9)
    start = model.head.bias.detach().clone()
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(model.head.bias.detach(), start - (1 + 1.9))


def test_repeated_scaling_starts_from_the_initial_rates() -> None:
    optimizer = adamw(paper_groups(Parts(), lr=1.0))
    for factor in (0.5, 0.1):
        scale_learning_rates(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 2e-5 * 0.1, 2e-5 * 0.1]


def test_a_restored_optimizer_has_the_saved_moments_and_its_own_rates() -> None:
    model = Parts()
    saved = adamw(paper_groups(model, lr=1.0))
    model.head(torch.ones(1, 3)).sum().backward()
    saved.step()
    restored = adamw(paper_groups(model, lr=0.5, weight_decay=0.125))
    restore_optimizer(restored, saved.state_dict())
    moments = restored.state[model.head.weight]["exp_avg"]
    assert moments.equal(saved.state[model.head.weight]["exp_avg"])
    assert restored.param_groups[0]["lr"] == 0.5
    assert restored.param_groups[0]["weight_decay"] == 0.125


def test_the_moments_of_another_model_raise() -> None:
    other = Parts()
    other.body.requires_grad_(False)
    saved = adamw(paper_groups(other)).state_dict()
    with pytest.raises(ValueError, match=r"must have groups of \[2, 2, 2\] .* got \[2, 2\]"):
        restore_optimizer(adamw(paper_groups(Parts())), saved)


SGD = partial(sgd, momentum=0.9)


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [(adamw, SGD, "must be SGD, got AdamW"), (SGD, adamw, "must be AdamW, got SGD")],
)
def test_the_moments_of_another_kind_of_optimizer_raise(
    saved: Callable[..., Optimizer], own: Callable[..., Optimizer], message: str
) -> None:
    state_dict = saved(paper_groups(Parts())).state_dict()
    with pytest.raises(ValueError, match=f"the saved optimizer {message}, whose moments"):
        restore_optimizer(own(paper_groups(Parts())), state_dict)
