"""First convolution of a backbone for images of another number of channels than three."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers.models import randomize_weights, reduced_config
from torch import Tensor, nn

from deformable_detr.builders import build_model
from deformable_detr.labels import LabelSpace
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.backbones.input_channels import repeat_input_channels
from deformable_detr.models.backbones.timm_adapter import TimmBackbone
from deformable_detr.models.backbones.torchvision_adapter import build_mobilenet_v2, build_resnet
from deformable_detr.workflows.finetuning import FinetuneSource

CLASSES = LabelSpace((1, 2), ("a", "b"))
SHARED: dict[str, Any] = {"out_strides": (16,), "freeze_up_to_stride": 0}
BUILDERS: dict[str, Callable[..., Backbone]] = {
    "resnet": lambda **given: build_resnet(18, **SHARED, **given),
    "mobilenet_v2": lambda **given: build_mobilenet_v2(**SHARED, **given),
    "timm": lambda **given: TimmBackbone("resnet18", **SHARED, **given),
}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "resnet": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "timm": lambda: timm.create_model("resnet18"),
}


def first_weight(network: nn.Module) -> Tensor:
    return next(one.weight for one in network.modules() if isinstance(one, nn.Conv2d)).detach()


def gray_response(weight: Tensor, gray: Tensor) -> Tensor:
    """Apply a convolution to an image whose channels are all the same."""
    return nn.functional.conv2d(gray.expand(-1, weight.shape[1], -1, -1), weight)


def largest_difference(weight: Tensor, channels: int) -> float:
    """Return how far a gray image is from what it gives with three channels, relative to that."""
    gray = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    wanted = gray_response(weight, gray)
    found = gray_response(repeat_input_channels(weight, channels), gray)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("channels", [1, 3, 6, 9, 12, 15])
def test_a_gray_image_gives_the_same_with_one_channel_and_multiples_of_three(channels: int) -> None:
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    assert largest_difference(weight, channels) < 1e-12


@pytest.mark.parametrize("channels", [2, 4, 5, 7, 8, 16])
def test_other_numbers_count_the_first_colors_once_more(channels: int) -> None:
    weight = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    assert largest_difference(weight, channels) > 1e-3
    counts = [len(range(color, channels, 3)) for color in range(3)]
    weighted = weight * torch.tensor(counts).view(1, 3, 1, 1) * 3 / channels
    assert torch.allclose(repeat_input_channels(weight, channels).sum(1), weighted.sum(1))
    equal = weight[:, :1].expand(-1, 3, -1, -1)  # if the colors weigh the same, nothing differs
    assert largest_difference(equal, channels) < 1e-12


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 16])
def test_weights_are_those_of_timm(channels: int) -> None:
    weight = torch.randn(8, 3, 7, 7)
    expected = timm.models.adapt_input_conv(channels, weight)
    assert torch.equal(repeat_input_channels(weight, channels), expected)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_weights_of_a_file_are_repeated(name: str, channels: int, tmp_path: Path) -> None:
    network = WHOLE[name]()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = BUILDERS[name](in_channels=channels, weights=tmp_path / "weights.pth")
    assert backbone.in_channels == channels
    expected = timm.models.adapt_input_conv(channels, first_weight(network))
    assert torch.equal(first_weight(backbone), expected)
    (features,) = backbone(torch.rand(2, channels, 64, 64))
    assert features.shape == (2, backbone.channels[0], 4, 4)


@pytest.mark.parametrize("name", BUILDERS)
def test_weights_of_a_file_with_as_many_channels_are_kept(name: str, tmp_path: Path) -> None:
    content = WHOLE[name]().state_dict()
    first = next(iter(content))
    content[first] = torch.randn(len(content[first]), 4, *content[first].shape[2:])
    torch.save(content, tmp_path / "weights.pth")
    backbone = BUILDERS[name](in_channels=4, weights=tmp_path / "weights.pth")
    assert torch.equal(first_weight(backbone), content[first])


def test_published_weights_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torchvision.models.resnet18()
    kind = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda self, **options: network.state_dict())
    backbone = BUILDERS["resnet"](in_channels=6, weights="imagenet1k_v1")
    weight = network.conv1.weight.detach()
    assert torch.equal(first_weight(backbone), torch.cat([weight, weight], dim=1) / 2)


def test_timm_gets_each_channel_normalized_by_the_mean_over_the_colors() -> None:
    backbone = TimmBackbone("tf_efficientnet_lite0", **SHARED, in_channels=5)
    network = backbone.body.default_cfg
    mean, std = 0.5, 0.5
    assert network["mean"] == network["std"] == (mean, mean, mean)
    images = (torch.rand(1, 5, 32, 32) - (0.485 + 0.456 + 0.406) / 3) / (
        (0.229 + 0.224 + 0.225) / 3
    )
    seen: list[Tensor] = []
    backbone.body.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    backbone(images)
    pixels = images * (0.229 + 0.224 + 0.225) / 3 + (0.485 + 0.456 + 0.406) / 3
    assert torch.allclose(seen[0], (pixels - mean) / std, atol=1e-6)


@pytest.mark.parametrize("conv", ["plain", "deform", "ac_block"])
def test_a_detector_is_fine_tuned_to_other_channels(conv: str, tmp_path: Path) -> None:
    none = "model.backbone.weights=none"
    old = build_model(reduced_config("quickstart", none), num_classes=2)
    randomize_weights(old)
    source = FinetuneSource(tmp_path / "old.pth", old.state_dict(), CLASSES, "native")
    more = [] if conv == "plain" else [f"model.backbone.conv={{kind: {conv}, strides: [2, 8]}}"]
    trained = "model.backbone.freeze_up_to_stride=0"  # frozen convolutions are not replaced
    config = reduced_config("quickstart", none, trained, "model.backbone.in_channels=6", *more)
    model, report = source.build_model(
        lambda load: build_model(config, num_classes=2, load_backbone_weights=load),
        CLASSES,
        config.model.backbone,
    )
    weight = first_weight(old.backbone)
    if conv == "plain":
        assert torch.equal(first_weight(model.backbone), torch.cat([weight, weight], dim=1) / 2)
    kept = {name for name in report.kept if name.startswith("backbone.")}
    assert kept == {name for name in old.state_dict() if name.startswith("backbone.")} or more
    gray = torch.rand(1, 1, 64, 64)
    old_last, last = (
        one.eval()([*gray.expand(-1, channels, -1, -1)]).last
        for one, channels in ((old, 3), (model, 6))
    )
    assert torch.allclose(last.logits, old_last.logits, rtol=1e-4, atol=1e-4)


def test_images_of_other_channels_than_the_model_are_refused() -> None:
    config = reduced_config("quickstart", "model.backbone.weights=none")
    model = build_model(config, num_classes=2)
    with pytest.raises(ValueError, match=r"images must have 3 channels, .* got 4"):
        model([torch.rand(4, 64, 64)])
