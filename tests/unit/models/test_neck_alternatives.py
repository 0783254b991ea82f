"""Necks that add something to the channel mapper start as the channel mapper."""

import pytest
import torch
from helpers.models import make_target, randomize_weights, reduced_config, small_detector
from torch import nn

from deformable_detr import build_criterion, build_model
from deformable_detr.config import ConfigError
from deformable_detr.config.loading import load_config
from deformable_detr.engine.checkpoints.transfer import transfer_weights
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR

NECKS = {
    "asff": "{kind: asff, num_levels: 4}",
    "asff_masked": "{kind: asff, num_levels: 5, mask_padding: true}",
    "asff_rfb": "{kind: asff, num_levels: 4, rfb: true}",
    "deform_kernel": "{kind: deform_kernel, num_levels: 4}",
}
CLASSES = LabelSpace((1, 2, 3, 4, 5), ("a", "b", "c", "d", "e"))
MOBILENET = "model.backbone={kind: mobilenet_v2, weights: none}"
# Odd sizes on every level, and padding.
SIZES = ((150, 210), (134, 180))


def detectors(neck: str, *overrides: str) -> tuple[DeformableDETR, DeformableDETR]:
    """Build a plain detector with random weights, and one with the neck and these weights."""
    levels = f"model.neck.num_levels={5 if neck == 'asff_masked' else 4}"
    plain = small_detector("refine", levels, *overrides).eval()
    randomize_weights(plain)
    other = small_detector("refine", f"model.neck={NECKS[neck]}", *overrides, seed=1).eval()
    report = transfer_weights(
        other, plain.state_dict(), old_classes=CLASSES, new_classes=CLASSES, what="plain"
    )
    assert len([name for name in report.kept if name.startswith("neck.")]) == len(
        plain.neck.state_dict()
    )
    return plain, other


@pytest.mark.parametrize("backbone", [(), (MOBILENET,)], ids=["resnet", "mobilenet"])
@pytest.mark.parametrize("neck", NECKS)
def test_the_detector_starts_as_the_one_it_is_fine_tuned_from(
    neck: str, backbone: tuple[str, ...]
) -> None:
    plain, other = detectors(neck, *backbone)
    images = [torch.randn(3, *size) for size in SIZES]
    with torch.no_grad():
        expected, found = plain(images), other(images)
    layers = zip((*expected.auxiliary, expected.last), (*found.auxiliary, found.last), strict=True)
    for one, two in layers:
        assert (one.logits - two.logits).abs().max() < 1e-5
        assert (one.boxes - two.boxes).abs().max() < 1e-5


@pytest.mark.parametrize("neck", NECKS)
@pytest.mark.parametrize("labels", [(1, 3), ()], ids=["objects", "empty"])
def test_every_parameter_has_a_gradient(neck: str, labels: tuple[int, ...]) -> None:
    config = reduced_config("deformable_detr_r50_two_stage", f"model.neck={NECKS[neck]}")
    model = build_model(config, num_classes=5)
    randomize_weights(model)  # weights before an initial gamma of zero have no gradient
    output = model([torch.randn(3, *size) for size in SIZES])
    targets = [make_target(*labels), make_target()]
    build_criterion(config)(output, targets).losses["total"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    added = [n for n, _ in model.neck.named_parameters() if n.startswith(("fusion", "residuals"))]
    parameters = dict(model.neck.named_parameters())
    assert added
    if labels:
        assert all(parameters[name].grad.abs().sum() > 0 for name in added)


def test_rotation_generators_have_the_role_of_sampling() -> None:
    model = small_detector("multi_scale", f"model.neck={NECKS['deform_kernel']}")
    roles = model.parameter_roles()
    generators = [name for name in roles if "rotation_conv" in name]
    assert len(generators) == 2 * 4  # a weight and a bias per level
    assert {roles[name] for name in generators} == {"sampling"}
    rest = [n for n in roles if n.startswith("neck.") and n not in generators]
    assert {roles[name] for name in rest} == {"default"}


def test_fusion_of_one_level_raises() -> None:
    with pytest.raises(ConfigError, match=r"neck\.num_levels"):
        load_config("deformable_detr_r50", ["model.neck={kind: asff, num_levels: 1}"])


def test_a_neck_of_another_kind_keeps_the_names_of_the_mapper() -> None:
    plain = small_detector("multi_scale")
    for neck in ("asff", "deform_kernel"):
        other = small_detector("multi_scale", f"model.neck={NECKS[neck]}")
        assert isinstance(other.neck, nn.Module)
        assert plain.state_dict().keys() < other.state_dict().keys()
