import pytest
import timm
import torch
import torchvision
from helpers.models import mobilenet_v2, resnet, timm_backbone
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2.functional import normalize

from deformable_detr.pixels.normalization import IMAGENET_MEAN, IMAGENET_STD

BACKBONES = {
    "resnet18": lambda: resnet(18),
    "resnet50_two_maps": lambda: resnet(50, out_strides=(4, 16)),
    "resnet50_dc5": lambda: resnet(50, out_strides=(16,), dilation=True),
    "mobilenet_v2": lambda: mobilenet_v2(out_strides=(4, 8, 16, 32)),
    "mobilenet_v2_cut": lambda: mobilenet_v2(out_strides=(8, 16)),
    "timm_resnet18": lambda: timm_backbone("resnet18", out_strides=(8, 16)),
    "timm_lite0": lambda: timm_backbone("tf_efficientnet_lite0", out_strides=(8, 16)),
    "timm_mobilenetv3": lambda: timm_backbone("mobilenetv3_small_050", out_strides=(4, 8)),
    "timm_convnext": lambda: timm_backbone("convnext_atto", out_strides=(8, 16, 32)),
    "timm_regnety": lambda: timm_backbone("regnety_002", out_strides=(8, 16, 32)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_strides_and_channels_are_those_of_the_maps(name):
    backbone = BACKBONES[name]()
    features = backbone(torch.randn(2, 3, 64, 96))
    assert [feature.shape[1] for feature in features] == list(backbone.channels)
    assert [64 // feature.shape[2] for feature in features] == list(backbone.strides)
    assert [96 // feature.shape[3] for feature in features] == list(backbone.strides)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_trainable_parameter_is_used(name):
    backbone = BACKBONES[name]()
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 64, 64))).backward()
    unused = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert any(parameter.requires_grad for parameter in backbone.parameters())


def test_parameters_that_no_map_depends_on_are_not_trained():
    backbone = timm_backbone("hrnet_w18_small", freeze_up_to_stride=0)
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 64, 64))).backward()
    parameters = dict(backbone.named_parameters())
    assert {p.requires_grad for p in parameters.values()} == {False, True}
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_all_of_a_vision_transformer_can_be_frozen():
    backbone = timm_backbone("test_vit", out_strides=(16,), freeze_up_to_stride=16)
    assert [name for name, p in backbone.named_parameters() if p.requires_grad] == []
    assert [stride for stride, _ in backbone.blocks()] == [16] * len(backbone.blocks())


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_up_to_stride_4_is_trained(name):
    backbone = BACKBONES[name]()
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    first = next(backbone.parameters())
    assert not first.requires_grad
    frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad)
    assert backbone(images)[-1].requires_grad
    assert frozen > 0


def test_resnet_freezes_what_the_paper_freezes():
    frozen = [p for p in resnet(50).parameters() if not p.requires_grad]
    assert len(frozen) == 11
    assert sum(parameter.numel() for parameter in frozen) == 222_400


def test_freeze_up_to_stride_0_trains_everything_and_32_nothing():
    assert all(p.requires_grad for p in resnet(18, freeze_up_to_stride=0).parameters())
    nothing = resnet(18, freeze_up_to_stride=32)
    assert not any(p.requires_grad for p in nothing.parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_batch_norm_is_frozen_in_training_mode_too(name):
    backbone = BACKBONES[name]().train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any("num_batches_tracked" in key for key in after)


def test_batch_norm_can_be_trained():
    backbone = mobilenet_v2(norm_layer=nn.BatchNorm2d).train()
    statistics = dict(backbone.named_buffers())
    name = next(key for key in statistics if key.endswith("running_mean"))
    before = statistics[name].clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert not torch.equal(statistics[name], before)


def test_dc5_keeps_stride_16_and_dilates_all_but_the_first_block():
    backbone = resnet(50, out_strides=(16,), dilation=True)
    last_stage = backbone.body.layer4
    assert [block.conv2.dilation for block in last_stage] == [(1, 1), (2, 2), (2, 2)]
    assert [block.conv2.stride for block in last_stage] == [(1, 1)] * 3
    assert backbone.channels == (2048,)


def equal_outputs(first, second):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = zip(first(images), second(images), strict=True)
        return all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_read_from_a_file_of_the_whole_network(tmp_path, suffix):
    network = torchvision.models.resnet18().eval()
    path = tmp_path / f"weights{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(network.state_dict(), path)
    backbone = resnet(18, out_strides=(32,), weights=path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.fc(network.avgpool(backbone(images)[0]).flatten(1))
        torch.testing.assert_close(network(images), expected)


def test_weights_under_a_state_dict_key_with_a_module_prefix_are_found(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    plain, nested = tmp_path / "plain.pth", tmp_path / "nested.pth"
    torch.save(state, plain)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, nested)
    assert equal_outputs(resnet(18, weights=plain), resnet(18, weights=nested))


def test_timm_names_and_torchvision_names_give_the_same_network(tmp_path):
    timm_network = timm.create_model("mobilenetv2_100").eval()
    path = tmp_path / "timm.pth"
    torch.save(timm_network.state_dict(), path)
    ours = mobilenet_v2(out_strides=(8, 16), weights=path)
    theirs = timm_backbone("mobilenetv2_100", out_strides=(8, 16), weights=path)
    assert equal_outputs(ours, theirs)


def test_a_file_of_another_architecture_raises(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(ValueError, match=r"must fit the network by name or by order, but"):
        mobilenet_v2(weights=path)


def test_a_parameter_of_another_shape_raises(tmp_path):
    path = tmp_path / "resnet18.pth"
    state = torchvision.models.resnet18().state_dict()
    torch.save(state | {"layer1.0.conv1.weight": torch.zeros(64, 32, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"but layer1.0.conv1.weight has shape \(64, 64, 3, 3\)"):
        resnet(18, weights=path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"garbage"), "is not a file that PyTorch wrote"),
        (lambda path: torch.save({"a": 3}, path), "must hold a state dict"),
        (lambda path: None, "backbone weights .* must exist, found nothing"),
    ],
)
def test_broken_weight_files_raise(tmp_path, write, message):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resnet(18, weights=path)


def test_unknown_published_weights_raise_with_the_available_names():
    with pytest.raises(ValueError, match=r"one of \['imagenet1k_v1', .*\], got 'imagenet22k'"):
        resnet(50, weights="imagenet22k")
    with pytest.raises(ValueError, match="weights of convnext_atto must be a file or one of"):
        timm_backbone("convnext_atto", weights="nope")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: resnet(51), "depth must be one of"),
        (lambda: resnet(18, dilation=True), "dilation must be false below ResNet-50"),
        (
            lambda: resnet(18, out_strides=(8, 64)),
            r"among \[2, 4, 8, 16, 32\], got \[8, 64\]",
        ),
        (lambda: resnet(18, out_strides=(16, 8)), "must be increasing"),
        (lambda: timm_backbone("resnet5"), "got 'resnet5'"),
        (lambda: timm_backbone("resnet18", out_strides=(64,)), r"got \[64\]"),
        (
            lambda: timm_backbone("hrnet_w18_small"),
            "freeze_up_to_stride must be 0 for this network",
        ),
    ],
)
def test_invalid_backbones_raise(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_published_weights_are_requested_by_name(monkeypatch):
    network = torchvision.models.resnet18()
    member = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    asked = []
    monkeypatch.setattr(
        type(member),
        "get_state_dict",
        lambda self, **_: asked.append(self) or network.state_dict(),
    )
    backbone = resnet(18, weights="imagenet1k_v1")
    assert asked == [member]
    assert torch.equal(backbone.body.conv1.weight, network.conv1.weight)


def test_a_timm_network_gets_its_own_normalization():
    backbone = timm_backbone("tf_efficientnet_lite0", out_strides=(8,)).eval()
    pixels = torch.rand(1, 3, 64, 64)
    ours = normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
    theirs = normalize(pixels, [0.5] * 3, [0.5] * 3)  # timm's values for this network
    with torch.no_grad():
        torch.testing.assert_close(backbone(ours)[0], backbone.body(theirs)[0])
