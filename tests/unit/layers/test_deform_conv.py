import copy
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deformable_detr.layers import deform_conv
from deformable_detr.layers.deform_conv import (
    DeformConv2d,
    ModulatedDeformConv2d,
    OffsetGenerator,
    rename_old_offset_keys,
)

KINDS = pytest.mark.parametrize("kind", [DeformConv2d, ModulatedDeformConv2d])
GEOMETRY = {"stride": 2, "padding": 2, "dilation": 2}


def randomized(block):
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def test_golden_values_and_gradients_of_version_1():
    block = DeformConv2d(1, 1, 2, bias=False)
    generator = [
        [0.1, 0.4, 0.6, 0.1],
        [0.3, 0.2, 0.1, 0.3],
        [0.5, 0.5, 0.2, 0.8],
        [0.8, 0.3, 0.9, 0.1],
        [0.3, 0.1, 0.2, 0.5],
        [0.3, 0.7, 0.5, 0.3],
        [0.6, 0.2, 0.5, 0.3],
        [0.4, 0.1, 0.8, 0.4],
    ]
    with torch.no_grad():
        block.weight.copy_(torch.tensor([0.4, 0.2, 0.1, 0.9]).view(1, 1, 2, 2))
        block.conv_offset.weight.copy_(torch.tensor(generator).view(8, 1, 2, 2))
        block.conv_offset.bias.copy_(torch.tensor([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]))
    features = torch.tensor([[[[1.0, 2, 3], [0, 1, 2], [3, 5, 2]]]], requires_grad=True)
    output = block(features)
    output.sum().backward()
    golden = (
        (output, [1.65, 0, 0, 0]),
        (features.grad, [-0.666, 0.204, 0, 0.030, -0.416, 0.012, 0, 0.252, 0.129]),
        (block.conv_offset.bias.grad, [1.44, -0.72, 0, 0, -0.1, -0.08, -0.54, -0.54]),
        (block.weight.grad, [3.62, 0, 0.40, 0.18]),
    )
    for actual, expected in golden:
        torch.testing.assert_close(actual.flatten(), torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 4), (8, 1)])
def test_version_1_starts_as_the_plain_convolution(bias, groups, offset_groups):
    block = DeformConv2d(
        8, 16, 3, groups=groups, bias=bias, offset_groups=offset_groups, **GEOMETRY
    )
    if bias:
        nn.init.normal_(block.bias)
    features = torch.randn(2, 8, 9, 11)
    expected = F.conv2d(features, block.weight, block.bias, groups=groups, **GEOMETRY)
    torch.testing.assert_close(block(features), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask_scale", [1.0, 2.0])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (2, 4), (8, 1)])
def test_version_2_starts_as_the_scaled_plain_convolution(mask_scale, groups, offset_groups):
    block = ModulatedDeformConv2d(
        8, 16, 3, groups=groups, offset_groups=offset_groups, mask_scale=mask_scale, **GEOMETRY
    )
    nn.init.normal_(block.bias)
    features = torch.randn(2, 8, 9, 11)
    plain = F.conv2d(features, block.weight, groups=groups, **GEOMETRY)
    expected = mask_scale / 2 * plain + block.bias[:, None, None]
    torch.testing.assert_close(block(features), expected, rtol=0, atol=1e-5)


def test_version_1_equals_torchvision_with_the_predicted_offsets():
    block = randomized(DeformConv2d(8, 6, (3, 2), groups=2, offset_groups=4, **GEOMETRY))
    features = torch.randn(2, 8, 9, 11)
    generator = block.conv_offset
    offset = F.conv2d(features, generator.weight, generator.bias, **GEOMETRY)
    expected = torchvision.ops.deform_conv2d(features, offset, block.weight, block.bias, **GEOMETRY)
    torch.testing.assert_close(block(features), expected)


@pytest.mark.parametrize("mask_scale", [1.0, 2.0])
def test_version_2_takes_the_last_third_as_mask_logits(mask_scale):
    block = ModulatedDeformConv2d(
        8, 6, (3, 2), groups=2, offset_groups=4, mask_scale=mask_scale, **GEOMETRY
    )
    randomized(block)
    features = torch.randn(2, 8, 9, 11)
    generator = block.conv_offset
    raw = F.conv2d(features, generator.weight, generator.bias, **GEOMETRY)
    assert raw.shape[1] == 3 * 4 * 6
    expected = torchvision.ops.deform_conv2d(
        features,
        raw[:, :48],
        block.weight,
        block.bias,
        mask=mask_scale / (1 + (-raw[:, 48:]).exp()),
        **GEOMETRY,
    )
    torch.testing.assert_close(block(features), expected)


def test_initial_weights_are_those_of_mmcv():
    first = DeformConv2d(64, 64, 3, groups=2)
    second = ModulatedDeformConv2d(64, 64, 3, groups=2)
    for block, bound in ((first, (6 / (32 * 9)) ** 0.5), (second, (64 * 9) ** -0.5)):
        assert block.weight.abs().max() <= bound
        assert block.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert (block.bias == 0).all()
        assert all((parameter == 0).all() for parameter in block.conv_offset.parameters())


@KINDS
def test_weights_of_a_plain_convolution_lack_only_conv_offset(kind):
    block = kind(8, 6, 3, groups=2)
    plain = nn.Conv2d(8, 6, 3, groups=2)
    result = block.load_state_dict(plain.state_dict(), strict=False)
    assert result.missing_keys == ["conv_offset.weight", "conv_offset.bias"]
    assert result.unexpected_keys == []
    assert isinstance(block.conv_offset, OffsetGenerator)
    assert "bias" not in kind(8, 6, 3, bias=False).state_dict()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_offsets_and_masks_have_full_precision_under_autocast(kind, dtype, monkeypatch):
    block = randomized(kind(8, 6, 3, padding=1, offset_groups=2))
    features = torch.randn(2, 8, 9, 11).to(dtype)
    seen = []

    def spy(*arguments):
        seen.extend((arguments[1], arguments[7]))
        return torchvision.ops.deform_conv2d(features.float(), *arguments[1:])

    expected = block.sampling(features.float())
    monkeypatch.setattr(deform_conv, "deform_conv2d", spy)
    with torch.autocast("cpu", torch.bfloat16):
        block(features)
    assert seen[0].dtype == torch.float32
    for actual, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(actual, wanted)  # no intermediate rounding either


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_low_precision_results_are_rounded_once(kind, dtype, is_narrow):
    """Low-precision features under autocast, or a module entirely in low precision."""
    block = randomized(kind(8, 6, 3, padding=1, offset_groups=2))
    if is_narrow:
        block = block.to(dtype)
    features = torch.randn(2, 8, 9, 11).to(dtype)
    exact = copy.deepcopy(block).double()(features.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=not is_narrow):
        output = block(features)
    assert output.dtype == dtype
    scale = exact.abs().max().item()
    half_a_step = scale * torch.finfo(dtype).eps / 2
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=half_a_step + 1e-4 * scale)


@KINDS
def test_gradients_of_all_parameters_equal_finite_differences(kind):
    block = randomized(kind(4, 2, 3, stride=2, dilation=2, padding=2, offset_groups=2)).double()
    features = torch.randn(1, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in block.named_parameters()]

    def call(features, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), features)

    fractions = block.conv_offset(features)[:, :36] % 1
    assert fractions.sub(0.5).abs().max() < 0.5 - 1e-4  # no sample on a row or column of pixels
    assert torch.autograd.gradcheck(call, (features, *block.parameters()), fast_mode=True)


@KINDS
def test_repr_shows_the_arguments(kind):
    block = kind(8, 16, 3, 2, 1, 2, 4, False, offset_groups=2)
    expected = (
        "(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=4, "
        "bias=False, offset_groups=2"
    )
    assert expected in re.sub(r"\s+", " ", block.extra_repr().join("()"))


def test_old_keys_of_conv_offset_are_renamed():
    weight, old = torch.zeros(1), torch.ones(1)
    state = {"layer.conv2.weight": weight, "layer.conv2_offset.weight": old, "a_offset.bias": old}
    assert rename_old_offset_keys(state) == {
        "layer.conv2.weight": weight,
        "layer.conv2.conv_offset.weight": old,
        "a_offset.bias": old,  # without a convolution "a"
    }


def test_current_keys_of_conv_offset_are_kept():
    state = ModulatedDeformConv2d(2, 2, 3).state_dict(prefix="layer.conv2.")
    assert list(rename_old_offset_keys(state)) == list(state)


@KINDS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3}, "in_channels must be divisible by groups, got 8 and 3"),
        ({"groups": 4}, "out_channels must be divisible by groups, got 6 and 4"),
        ({"offset_groups": 3}, "in_channels must be divisible by offset_groups, got 8 and 3"),
        ({"offset_groups": 0}, "in_channels must be divisible by offset_groups, got 8 and 0"),
    ],
)
def test_channels_not_divisible_by_groups_raise(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(8, 6, 3, **arguments)


def test_another_mask_scale_raises():
    with pytest.raises(ValueError, match=r"mask_scale must be 1 or 2, got 0\.5"):
        ModulatedDeformConv2d(8, 6, 3, mask_scale=0.5)
