"""Replacement of convolutions in backbones: selection, and equality at the start."""

import copy

import pytest
import torch
from helpers.models import (
    STRIDES,
    mobilenet_v2,
    randomize_weights,
    reduced_config,
    resnet,
    timm_backbone,
)
from torch import nn
from torchvision.models import resnet50

from deformable_detr.builders import build_model, build_optimizer
from deformable_detr.layers.deform_conv import ModulatedDeformConv2d, OffsetGenerator
from deformable_detr.models.backbones.surgery import (
    ac_block,
    deform_conv,
    deform_kernel,
    diverse_branch_block,
    modulated_deform_conv,
    replace_convs,
)

NETWORKS = {
    "resnet50": (lambda: resnet(50), 13),
    "mobilenet_v2": (mobilenet_v2, 14),
    "timm": (lambda: timm_backbone("efficientnet_lite0"), 13),
}
DENSE = {
    "v1": deform_conv(),
    "v2": modulated_deform_conv(mask_scale=2.0),
    "acb": ac_block(),
    "dbb": diverse_branch_block(),
}
KERNELS = {
    "scope_3": deform_kernel(scope_size=3),
    "scope_5": deform_kernel(scope_size=5),
    "scope_4": deform_kernel(scope_size=4),
    "combined": deform_kernel(scope_size=5, image_offsets=True),
    "global": deform_kernel(scope_size=5, mode="global"),
    "image_offsets_alone": deform_kernel(
        scope_size=5, image_offsets=True, kernel_offsets=False, clip_to_scope=False
    ),
}
CASES = [("resnet50", DENSE[name]) for name in DENSE] + [
    ("mobilenet_v2", replacement) for replacement in (*DENSE.values(), *KERNELS.values())
]
CASES.append(("timm", KERNELS["scope_5"]))
CONFIGS = {
    "deform": "{kind: deform}",
    "modulated_deform": "{kind: modulated_deform}",
    "ac_block": "{kind: ac_block}",
    "diverse_branch": "{kind: diverse_branch}",
    "deform_kernel": "{kind: deform_kernel, image_offsets: true}",
}


@pytest.mark.parametrize(("network", "replacement"), CASES)
@torch.no_grad()
def test_initial_features_equal_the_plain_ones(network, replacement):
    make, _ = NETWORKS[network]
    backbone = make().eval()
    randomize_weights(backbone)
    images = torch.randn(1, 3, 64, 96)
    wanted = backbone(images)
    assert replace_convs(backbone, replacement, strides=STRIDES) != []
    for result, feature in zip(backbone(images), wanted, strict=True):
        assert feature.abs().max() > 0.1
        assert (result - feature).abs().max() < 1e-4 * feature.abs().max()


def test_weights_of_a_resnet50_lack_only_conv_offset_of_13_v2_blocks():
    backbone = resnet(50)
    names = replace_convs(backbone, modulated_deform_conv(mask_scale=2.0), strides=STRIDES)
    blocks = [m for m in backbone.modules() if isinstance(m, ModulatedDeformConv2d)]
    assert len(names) == len(blocks) == 13
    published = {
        f"body.{name}": tensor
        for name, tensor in resnet50().state_dict().items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
    result = backbone.load_state_dict(published, strict=False)
    assert result.unexpected_keys == []
    expected = {f"{name}.conv_offset.{leaf}" for name in names for leaf in ("weight", "bias")}
    assert set(result.missing_keys) == expected


@torch.no_grad()
def test_a_resnet101_has_30_blocks():
    assert len(replace_convs(resnet(101), deform_conv(), strides=STRIDES)) == 30


def test_only_trained_blocks_of_the_given_strides_are_replaced():
    assert len(replace_convs(resnet(50), deform_conv(), strides=(32,))) == 3
    assert (
        len(replace_convs(resnet(50, freeze_up_to_stride=8), deform_conv(), strides=STRIDES)) == 9
    )
    with pytest.raises(ValueError, match=r"must have a trained convolution .* got none"):
        replace_convs(resnet(50), deform_conv(), strides=(4,))


def test_invalid_replacements_raise_and_change_nothing():
    backbone = resnet(18)
    with pytest.raises(ValueError, match="must have a trained depthwise convolution"):
        replace_convs(backbone, deform_kernel(scope_size=5), strides=STRIDES)
    with pytest.raises(ValueError, match=r"among \[2, 4, 8, 16, 32\], got \[64\]"):
        replace_convs(backbone, deform_conv(), strides=(64,))
    before = list(backbone.state_dict())
    with pytest.raises(ValueError, match=r"layer2\.0\.conv1 cannot be replaced: in_channels"):
        replace_convs(backbone, deform_conv(offset_groups=3), strides=STRIDES)
    assert list(backbone.state_dict()) == before
    replace_convs(backbone, deform_conv(), strides=STRIDES)
    with pytest.raises(ValueError, match=r"at most once, got DeformConv2d at body\.layer2"):
        replace_convs(backbone, diverse_branch_block(), strides=STRIDES)


def detector(conv):
    torch.manual_seed(0)
    config = reduced_config(
        "backbones/mobilenet_v2", f"model.backbone.conv={conv}", "model.neck.num_levels=3"
    )
    return build_model(config, num_classes=3), config


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_a_detector_starts_with_the_plain_outputs(kind):
    model, _ = detector(CONFIGS[kind])
    plain, _ = detector("{kind: plain}")
    images = [torch.randn(3, 64, 96)]
    shared = model.state_dict()
    state = plain.state_dict()
    state.update({name: t for name, t in shared.items() if not name.startswith("backbone.")})
    plain.load_state_dict(state)
    randomize_weights(plain)
    rebuilt = copy.deepcopy(plain)
    replace_convs(
        rebuilt.backbone, {**DENSE, "dk": KERNELS["combined"]}[_short(kind)], strides=STRIDES
    )
    wanted, result = (net.eval()(images).last for net in (plain, rebuilt))
    assert list(rebuilt.state_dict()) == list(model.state_dict())
    assert (result.boxes - wanted.boxes).abs().max() < 1e-5
    assert (result.logits - wanted.logits).abs().max() < 1e-4


def _short(kind):
    short = {"deform": "v1", "modulated_deform": "v2", "ac_block": "acb"}
    return {**short, "diverse_branch": "dbb", "deform_kernel": "dk"}[kind]


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_parameter_is_in_one_group_and_generators_have_a_tenth_of_the_rate(kind):
    model, config = detector(CONFIGS[kind])
    optimizer = build_optimizer(config.train.optimizer, model)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    generators = {
        id(parameter)
        for module in model.backbone.modules()
        if isinstance(module, OffsetGenerator)
        for parameter in module.parameters()
    }
    found = {group["role"]: group for group in optimizer.param_groups}
    slow = found.get("backbone_sampling", {"params": []})
    assert {id(parameter) for parameter in slow["params"]} == generators
    assert bool(generators) == ("deform" in kind)
    if generators:
        assert slow["lr"] == pytest.approx(0.1 * found["backbone"]["lr"])


def test_generators_outside_the_backbone_have_the_rate_of_sampling():
    model, _ = detector("{kind: plain}")
    model.neck.extra = nn.Sequential(OffsetGenerator(4, 18, 3))
    roles = model.parameter_roles()
    assert roles["neck.extra.0.weight"] == roles["neck.extra.0.bias"] == "sampling"
