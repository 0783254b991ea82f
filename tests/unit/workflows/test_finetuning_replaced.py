"""`train --finetune-from` a plain detector: replaced convolutions start from its plain ones."""

import copy
import logging

import pytest
import torch
from helpers.models import randomize_weights, reduced_config
from torch import Tensor

from deformable_detr.builders import build_model
from deformable_detr.config import RunConfig
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.workflows.finetuning import FinetuneSource
from deformable_detr.workflows.training_parts import build_run_model

CLASSES = LabelSpace((1, 2), ("a", "b"))
PLAIN = "model.backbone.weights=none"
BATCH_NORM = "model.backbone.norm=batch_norm"
CASES = {
    "v1": ("quickstart", "{kind: deform, strides: [8, 16]}"),
    "v2": ("deformable_detr_r50", "{kind: modulated_deform, offset_groups: 2}"),
    "ac_block": ("quickstart", "{kind: ac_block, strides: [8, 16]}"),
    "ac_block that learns statistics": ("deformable_detr_r50", "{kind: ac_block}", BATCH_NORM),
    "diverse_branch": ("deformable_detr_r50", "{kind: diverse_branch}"),
    "deform_kernel": ("quickstart", "{kind: deform_kernel, strides: [16], image_offsets: true}"),
    "deform_kernel, even scope": (
        "quickstart",
        "{kind: deform_kernel, strides: [16], scope_size: 4}",
    ),
}


def build(config: RunConfig, source: FinetuneSource | None):
    model, report = build_run_model(config, CLASSES, source, resume=False)
    return model.eval(), report


def outputs(model: DeformableDETR) -> list[Tensor]:
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        last = model([*images]).last
    return [last.logits, last.boxes]


def plain_source(tmp_path, config: RunConfig) -> tuple[DeformableDETR, FinetuneSource]:
    plain = build_model(config, num_classes=CLASSES.num_classes).eval()
    randomize_weights(plain)
    weights = copy.deepcopy(plain.state_dict())
    return plain, FinetuneSource(tmp_path / "plain.pth", weights, CLASSES, "native")


@pytest.mark.parametrize("case", CASES)
def test_a_model_with_replaced_convolutions_starts_as_the_plain_detector(case, tmp_path, caplog):
    name, conv, *overrides = CASES[case]
    plain, source = plain_source(tmp_path, reduced_config(name, PLAIN, *overrides))
    config = reduced_config(name, f"model.backbone.conv={conv}", PLAIN, *overrides)
    untouched, _ = build(config, None)
    with caplog.at_level(logging.INFO):
        model, report = build(config, source)
    assert f"replaced convolutions start from the plain ones of {source.path}" in caplog.messages
    for wanted, found, other in zip(*map(outputs, (plain, model, untouched)), strict=True):
        assert wanted.std() > 0.01
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert (other - wanted).abs().max() > 1e-2 * wanted.abs().max()
    # All tensors of the file are used; those that a plain detector lacks are as built.
    assert report.ignored == ()
    assert report.reinitialized
    own, before = model.state_dict(), untouched.state_dict()
    for new, reason in report.reinitialized.items():
        assert new.startswith("backbone.")
        assert reason == "not in the file"
        assert own[new].equal(before[new])
    plain_names = {n for n in plain.state_dict() if not n.endswith("num_batches_tracked")}
    assert len(report.kept) >= len(plain_names)


def test_a_deeper_plain_backbone_does_not_fit(tmp_path):
    config = reduced_config("deformable_detr_r50", PLAIN, "model.backbone.depth=34")
    _, source = plain_source(tmp_path, config)
    replaced = "model.backbone.conv={kind: deform}"
    config = reduced_config("deformable_detr_r50", replaced, PLAIN)
    _, report = build(config, source)
    assert not any(name.startswith("backbone.") for name in report.kept)
    assert any(name.startswith("backbone.body.layer3.") for name in report.ignored)
