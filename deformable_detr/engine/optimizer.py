"""Optimizers with one learning rate per parameter role."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

DEFAULT_ROLE = "default"


class HasParameterRoles(Protocol):
    """A detector that assigns a role to each of its parameters."""

    def parameter_roles(self) -> dict[str, str]:
        """Return the role of each parameter by its name."""

    def named_parameters(self) -> Any:
        """Return names and parameters, as `nn.Module.named_parameters` does."""


def parameter_groups(
    model: HasParameterRoles,
    *,
    lr: float,
    lr_by_role: Mapping[str, float],
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into one group per role, for an optimizer's constructor.

    Args:
        model: detector with the parameters and their roles.
        lr: learning rate of the role "default".
        lr_by_role: learning rates of the other roles.
        weight_decay: weight decay of every group, including norms and biases.

    Returns:
        The groups that have parameters, "default" first, each with its `role` and its
        `initial_lr`, which the schedule scales.

    Raises:
        ValueError: a parameter has no role, a role has no learning rate, or no parameter is
            trained.
    """
    rates = {DEFAULT_ROLE: lr, **lr_by_role}
    roles = model.parameter_roles()
    members: dict[str, list[nn.Parameter]] = {role: [] for role in rates}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        role = roles.get(name)
        if role not in rates:
            raise ValueError(
                f"the role of parameter {name} must be one of {', '.join(rates)}, got {role!r}"
            )
        members[role].append(parameter)
    if not any(members.values()):
        raise ValueError("at least one parameter must be trained, got none; freeze fewer roles")
    return [
        {
            "params": members[role],
            "role": role,
            "lr": rate,
            "initial_lr": rate,
            "weight_decay": weight_decay,
        }
        for role, rate in rates.items()
        if members[role]
    ]


def adamw(groups: list[dict[str, Any]]) -> Optimizer:
    """Return AdamW with PyTorch's betas, as in the official recipe."""
    return AdamW(groups)


def sgd(groups: list[dict[str, Any]], *, momentum: float) -> Optimizer:
    """Return stochastic gradient descent with momentum."""
    return SGD(groups, momentum=momentum)


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to `factor` times its initial one."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Restore the moments of a saved optimizer; keep this one's learning rates and weight decay.

    A resumed run therefore follows its own config in everything; the saved one overrides nothing.

    Raises:
        ValueError: the saved optimizer is of another kind, or has other groups.
    """
    current = optimizer.state_dict()
    kind, saved_kind = (_kind(one["param_groups"]) for one in (current, saved))
    if kind != saved_kind:
        raise ValueError(
            f"the saved optimizer must be {kind}, got {saved_kind}, whose moments mean something "
            "else; resume with the config of the run"
        )
    sizes = [len(group["params"]) for group in current["param_groups"]]
    saved_sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != saved_sizes:
        raise ValueError(
            f"the saved optimizer must have groups of {sizes} parameters, got {saved_sizes}; "
            "resume with the config of the run"
        )
    optimizer.load_state_dict({**current, "state": saved["state"]})


def _kind(param_groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the kind of optimizer that has such groups."""
    return "SGD" if any("momentum" in group for group in param_groups) else "AdamW"
