"""Deformable blocks in place of every 3x3 convolution of the last three stages of a ResNet-50."""

import pytest
import torch
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.deform_conv import (
    DeformConv2d,
    ModulatedDeformConv2d,
    OffsetGenerator,
)

STAGES = ("layer2", "layer3", "layer4")


def network(block=None, **options):
    """Build a ResNet-50 with a dilated last stage, and with `block`s if given."""
    net = resnet50(norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=(False, False, True))
    for stage in STAGES if block else ():
        for bottleneck in getattr(net, stage):
            old = bottleneck.conv2
            bottleneck.conv2 = block(
                old.in_channels,
                old.out_channels,
                old.kernel_size,
                old.stride,
                old.padding,
                old.dilation,
                old.groups,
                bias=False,
                **options,
            )
    return net


@pytest.fixture(scope="module")
def plain():
    net = network()
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith(("weight", "running_var")):
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.normal_(std=0.3)
    return net


@torch.no_grad()
def features(net):
    """Compute the features of the last stage for a random image."""
    torch.manual_seed(1)
    output = torch.randn(1, 3, 64, 96)
    for name, child in net.eval().named_children():
        if name not in ("avgpool", "fc"):
            output = child(output)
    return output


def test_pre_trained_weights_lack_only_conv_offset_of_the_13_blocks(plain):
    net = network(ModulatedDeformConv2d)
    result = net.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == []
    expected = {
        f"{stage}.{index}.conv2.conv_offset.{parameter}"
        for stage, count in zip(STAGES, (4, 6, 3), strict=True)
        for index in range(count)
        for parameter in ("weight", "bias")
    }
    assert set(result.missing_keys) == expected
    assert len(expected) == 2 * 13


def test_offset_generators_are_found_by_their_class():
    net = network(DeformConv2d, offset_groups=4)
    members = {
        f"{name}.{parameter}"
        for name, module in net.named_modules()
        if isinstance(module, OffsetGenerator)
        for parameter, _ in module.named_parameters()
    }
    assert members == {name for name, _ in net.named_parameters() if ".conv_offset." in name}
    assert len(members) == 2 * 13


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (DeformConv2d, {"offset_groups": 4}),
        (ModulatedDeformConv2d, {"mask_scale": 2.0}),
    ],
)
def test_the_network_starts_as_the_plain_one(plain, block, options):
    net = network(block, **options)
    net.load_state_dict(plain.state_dict(), strict=False)
    expected, actual = features(plain), features(net)
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-4)


def test_a_mask_of_one_half_changes_the_output_of_frozen_norms(plain):
    net = network(ModulatedDeformConv2d, mask_scale=1.0)
    net.load_state_dict(plain.state_dict(), strict=False)
    expected = features(plain)
    assert (features(net) - expected).norm() > 0.05 * expected.norm()
