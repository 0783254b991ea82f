"""Parameters that are frozen by their role."""

import copy

import pytest
import torch
from helpers.models import small_detector
from helpers.recipe import paper_groups
from helpers.tiny_training import CONSTANT, LABEL_SPACE, NUM_CLASSES, tiny_batch, tiny_criterion
from torch import nn

from deformable_detr.engine.optimizer import adamw
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step
from deformable_detr.models.deformable_detr import DeformableDETR

BATCH_NORM = ("model.backbone.norm=batch_norm", "model.backbone.freeze_up_to_stride=0")
DEFORMABLE = "model.backbone.conv={kind: deform}"


def detector(*roles: str, more: tuple[str, ...] = ()) -> DeformableDETR:
    freeze = f"train.freeze=[{', '.join(roles)}]"
    return small_detector("multi_scale", freeze, *more, num_classes=NUM_CLASSES)


def step(model: DeformableDETR) -> list[str]:
    """Take a step, and return the roles of the optimizer's groups."""
    groups = paper_groups(model, lr=1e-2, lr_by_role=dict.fromkeys(ROLES, 1e-2))
    state = TrainState(model, adamw(groups), CONSTANT, label_space=LABEL_SPACE, config={})
    model.train()
    train_step(
        state, [tiny_batch([1, 2], [2, 3], size=64)], tiny_criterion(), seed=0, max_grad_norm=0.1
    )
    return [group["role"] for group in groups]


ROLES = ("backbone", "sampling", "backbone_sampling")


@pytest.mark.parametrize("frozen", [("backbone",), ("sampling",), ("backbone", "default")])
def test_a_frozen_role_is_in_no_group_and_unchanged(frozen: tuple[str, ...]) -> None:
    model = detector(*frozen, more=BATCH_NORM)
    before = copy.deepcopy(dict(model.named_parameters()))
    groups = step(model)
    assert set(groups) == {"backbone", "sampling", "default"} - set(frozen)
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        is_frozen = roles[name] in frozen
        assert parameter.requires_grad != is_frozen, name
        assert (parameter.grad is None) == is_frozen, name
        assert not is_frozen or parameter.equal(before[name]), name
    moved = [n for n, p in model.named_parameters() if not p.equal(before[n])]
    assert moved


def test_statistics_are_updated_unless_the_backbone_is_frozen() -> None:
    for roles, stay in ((("backbone",), True), (("sampling",), False)):
        model = detector(*roles, more=BATCH_NORM)
        before = {name: value.clone() for name, value in model.backbone.named_buffers()}
        step(model)
        assert before
        same = [value.equal(before[name]) for name, value in model.backbone.named_buffers()]
        assert all(same) if stay else not any(same)


TIMM = "model.backbone={kind: timm, weights: none, norm: batch_norm, name: %s%s}"


@pytest.mark.parametrize(
    "more",
    [
        ("model.backbone.norm=batch_norm",),
        ("model.backbone.norm=batch_norm", "model.backbone.conv={kind: diverse_branch}"),
        (TIMM % ("test_resnet", ""),),
        # Its first stage has a rate of stochastic depth above 0.
        (TIMM % ("swin_s3_tiny_224", ", freeze_up_to_stride: 8"),),
        ("model.backbone.norm=batch_norm", "train.freeze=[sampling]"),
        ("train.freeze=[backbone, sampling, default]",),
    ],
)
def test_modules_without_trained_parameters_are_in_eval_mode(more: tuple[str, ...]) -> None:
    model = detector(more=more)
    for again in (model, copy.deepcopy(model).eval()):
        for _ in range(2):
            again.train()
            modes = {
                trained: {m.training for m in again.modules() if is_trained(m) is trained}
                for trained in (False, True)
            }
            assert modes[False] == {False}
            assert modes[True] in ({True}, set())
            assert not any(
                part.training
                for module in again.modules()
                if is_trained(module) is False
                for part in module.modules()
            )
            again.eval()
            assert not any(module.training for module in again.modules())


def is_trained(module: nn.Module) -> bool | None:
    """Return whether a parameter is trained, or None without parameters."""
    parameters = list(module.parameters())
    return any(parameter.requires_grad for parameter in parameters) if parameters else None


def test_statistics_move_where_something_is_trained_only() -> None:
    model = detector(more=("model.backbone.norm=batch_norm",))  # the stem and stage 1 are frozen
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    step(model)
    frozen = ("body.bn1.", "body.layer1.")
    assert any(name.startswith(frozen) for name in before)
    for name, value in model.backbone.named_buffers():
        assert value.equal(before[name]) == name.startswith(frozen), name


def test_entirely_frozen_modules_have_no_dropout() -> None:
    model = detector("default", "sampling").train()
    assert not any(module.training for module in model.encoder.modules())
    assert model.backbone.training
    assert not model.eval().training
    mixed = detector("sampling").train()
    assert all(m.training for m in mixed.modules() if isinstance(m, nn.Dropout))
    assert not mixed.encoder.layers[0].self_attn.sampling_offsets.training


def test_offsets_of_a_backbone_have_their_own_role() -> None:
    model = detector("backbone", more=(DEFORMABLE,))
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert all("conv_offset" in name for name in trained)
    both = detector("backbone", "backbone_sampling", more=(DEFORMABLE,))
    assert not any(parameter.requires_grad for parameter in both.backbone.parameters())


def test_a_role_without_parameters_raises() -> None:
    with pytest.raises(
        ValueError, match=r"roles of this model \(backbone, default, sampling\), got"
    ):
        detector("backbone_sampling")


def test_a_copy_freezes_its_own_modules() -> None:
    model = copy.deepcopy(detector("backbone")).train()
    assert not model.backbone.training
    assert model.neck.training
    assert torch.is_grad_enabled()


def test_a_detector_without_trained_parameters_raises() -> None:
    with pytest.raises(ValueError, match="at least one parameter must be trained, got none"):
        paper_groups(detector("backbone", "sampling", "default"))
