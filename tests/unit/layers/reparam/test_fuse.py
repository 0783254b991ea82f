import copy

import pytest
import torch
from helpers.branch_blocks import count_parameters, norms_of, randomize
from torch import nn
from torchvision.models import ResNet, mobilenet_v2, resnet18
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock
from deformable_detr.layers.reparam.folding import fold_frozen_norms
from deformable_detr.layers.reparam.fuse import fuse_model
from deformable_detr.layers.reparam.official_layout import as_official_conv_norm

BOTH = pytest.mark.parametrize("kind", [ACBlock, DiverseBranchBlock])


def with_blocks(network, kind):
    """Replace the 3x3 convolutions of the last three stages, and their norms, by blocks."""
    network = copy.deepcopy(network)
    for name, bottleneck in network.named_modules():
        if isinstance(bottleneck, Bottleneck) and not name.startswith("layer1"):
            bottleneck.conv2 = kind.from_conv_norm(bottleneck.conv2, bottleneck.bn2)
            bottleneck.bn2 = nn.Identity()
    return network


def scaled(network):
    """Randomize a network such that features keep their magnitude through the layers."""
    randomize(network).eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 4:
            tensor.mul_(3**0.5)
        elif name.endswith("bn3.weight"):
            tensor.mul_(0.3)
    return network


def features_of(network, images):
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    maps = []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        maps.append(x)
    return maps


@pytest.fixture(scope="module")
def plain_resnet():
    torch.manual_seed(0)
    return scaled(
        ResNet(Bottleneck, [1, 2, 2, 1], width_per_group=16, norm_layer=FrozenBatchNorm2d)
    )


@BOTH
@torch.no_grad()
def test_a_resnet_with_blocks_starts_as_the_plain_one(plain_resnet, kind):
    network = with_blocks(plain_resnet, kind)
    assert sum(isinstance(module, kind) for module in network.modules()) == 5
    images = torch.randn(1, 3, 64, 48)
    pairs = zip(features_of(network, images), features_of(plain_resnet, images), strict=True)
    for result, wanted in pairs:
        assert (result - wanted).abs().max() < 1e-4
        assert wanted.std() > 0.1


@BOTH
@torch.no_grad()
def test_a_fused_resnet_loads_into_the_plain_one_in_the_official_layout(plain_resnet, kind):
    network = randomize_blocks(with_blocks(plain_resnet, kind))
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, kind):
            parent = name.removesuffix(".conv2")
            for key in module.state_dict():
                del state[f"{name}.{key}"]
            fused = module.fuse()
            weight, norm = as_official_conv_norm(fused.weight, fused.bias)
            state[f"{name}.weight"] = weight
            state.update({f"{parent}.bn2.{key}": tensor for key, tensor in norm.items()})
    plain = copy.deepcopy(plain_resnet)
    plain.load_state_dict(state, strict=True)
    images = torch.randn(1, 3, 64, 48)
    pairs = zip(features_of(plain, images), features_of(network, images), strict=True)
    for result, wanted in pairs:
        assert (result - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert set(state) == set(plain.state_dict())
    assert count_parameters(plain) == count_parameters(plain_resnet)


def randomize_blocks(network):
    for module in network.modules():
        if isinstance(module, ACBlock | DiverseBranchBlock):
            randomize(module)
            for norm in norms_of(module):
                with torch.no_grad():
                    norm.weight.mul_(0.5)
    return network


@BOTH
@torch.no_grad()
def test_a_fused_resnet_has_only_convolutions_and_the_same_outputs(plain_resnet, kind):
    network = randomize_blocks(with_blocks(plain_resnet, kind))
    before = copy.deepcopy(network.state_dict())
    fused = fuse_model(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert sum(isinstance(module, kind) for module in network.modules()) == 5
    assert norms_of(fused) == []
    convs = [module for module in fused.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 1 + 3 * 6 + 4
    assert all(type(conv) is nn.Conv2d and conv.bias is not None for conv in convs)
    images = torch.randn(1, 3, 64, 48)
    pairs = zip(features_of(fused, images), features_of(network, images), strict=True)
    for result, wanted in pairs:
        assert (result - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("make", [resnet18, mobilenet_v2])
@torch.no_grad()
def test_the_norms_of_a_plain_network_are_fused_into_its_convolutions(make, norm):
    network = randomize(make(norm_layer=norm)).double().eval()
    fused = fuse_model(network)
    assert norms_of(network) != []
    assert norms_of(fused) == []
    images = torch.randn(1, 3, 32, 48, dtype=torch.float64)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-9, atol=1e-11)
    again = fuse_model(fused)
    assert list(again.state_dict()) == list(fused.state_dict())
    assert torch.equal(again(images), fused(images))


@torch.no_grad()
def test_folded_pairs_are_fused():
    network = fold_frozen_norms(randomize(mobilenet_v2(norm_layer=FrozenBatchNorm2d)).double())
    fused = fuse_model(network.eval())
    assert norms_of(fused) == []
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(fused(images), network(images), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm", ["frozen", "train"])
@BOTH
def test_a_norm_after_a_block_is_fused_too(kind, norm):
    network = nn.Sequential(kind(4, 6, 3, padding=1, norm=norm), nn.BatchNorm2d(6), nn.ReLU())
    randomize(network).double().eval()
    fused = fuse_model(network)
    assert [type(module) for module in fused] == [nn.Conv2d, nn.Identity, nn.ReLU]
    features = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(features), network(features))


def test_a_single_block_becomes_a_convolution():
    block = randomize(ACBlock(4, 6, 3))
    fused = fuse_model(block)
    assert type(fused) is nn.Conv2d
    assert torch.equal(fused.weight, block.fuse().weight)


def test_a_shared_block_becomes_one_shared_convolution():
    block = randomize(ACBlock(4, 4, 3, padding=1))
    fused = fuse_model(nn.ModuleDict({"first": block, "second": nn.Sequential(block)}))
    assert fused["first"] is fused["second"][0]


class Unrelated(nn.Module):
    """A convolution and a norm that do not follow each other."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.bn1 = FrozenBatchNorm2d(4)

    def forward(self, features):
        return self.conv1(self.bn1(features))


class Backwards(nn.Sequential):
    def forward(self, features):
        for module in reversed(list(self)):
            features = module(features)
        return features


def shared_convolution():
    conv = nn.Conv2d(4, 4, 1)
    return nn.Sequential(conv, FrozenBatchNorm2d(4), nn.ReLU(), conv, FrozenBatchNorm2d(4))


def repeated_activation():
    relu = nn.ReLU()
    return nn.Sequential(relu, nn.Conv2d(4, 4, 1), relu, FrozenBatchNorm2d(4))


@pytest.mark.parametrize(
    "make",
    [
        Unrelated,
        lambda: Backwards(nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)),
        shared_convolution,
        repeated_activation,
        lambda: nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1), "bn1": FrozenBatchNorm2d(4)}),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 1), FrozenBatchNorm2d(4)),
    ],
)
def test_norms_that_cannot_be_fused_exactly_are_kept(make):
    network = randomize(make()).eval()
    fused = fuse_model(network)
    assert [type(module) for module in fused.modules()] == [type(m) for m in network.modules()]
    assert all(
        torch.equal(tensor, fused.state_dict()[name])
        for name, tensor in network.state_dict().items()
    )


@pytest.mark.parametrize("first", [nn.Conv2d(4, 4, 1), ACBlock(4, 4, 3, norm="train")])
def test_norms_with_batch_statistics_raise(first):
    network = nn.Sequential(first, nn.BatchNorm2d(4)).train()
    with pytest.raises(ValueError, match=r"must be in eval mode to be fused, got .*train mode"):
        fuse_model(network)


def test_frozen_parameters_stay_frozen():
    network = nn.Sequential(nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in fuse_model(network).parameters())
