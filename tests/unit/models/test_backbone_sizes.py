"""Images of any size: what a backbone does with sides that are no multiples of its strides."""

import random

import pytest
import timm
import torch
from helpers.models import mobilenet_v2, resnet, small_detector, timm_backbone
from torch import nn

from deformable_detr.data.transforms import Resize
from deformable_detr.detector import Detector
from deformable_detr.labels import LabelSpace
from deformable_detr.models.backbones.probing import Probe, UnfitNetworkError, probe_network
from deformable_detr.models.memory import cell_centers
from deformable_detr.structures import ImageBatch, Memory

# Name, strides, and the multiple to which images are padded.
ANY_SIZE = {
    "resnet": (lambda **options: resnet(18, **options), (8, 16, 32), 1),
    "mobilenet_v2": (lambda **options: mobilenet_v2(**options), (8, 16, 32), 1),
    "timm": ("test_resnet", (8, 16, 32), 1),
    "rounds_down": ("test_convnext", (8, 16, 32), 32),
    "rounds_down_two_maps": ("test_convnext", (4, 8), 8),
    "channels_last": ("test_mambaout", (8, 16, 32), 1),
    "fails_between_multiples": ("dla46_c", (8, 16, 32), 32),
    "windows": ("swin_s3_tiny_224", (8, 16, 32), 32),
    "windows_of_fixed_size": ("test_maxvit", (8, 16, 32), 160),
    "one_stride": ("test_vit", (16,), 16),
}


def build(case, **options):
    made, strides, multiple = ANY_SIZE[case]
    options = {"out_strides": strides, **options}
    backbone = timm_backbone(made, **options) if isinstance(made, str) else made(**options)
    return backbone.eval(), multiple


@pytest.mark.parametrize("case", ANY_SIZE)
@torch.no_grad()
def test_maps_cover_the_pixels_of_images_of_any_size(case):
    backbone, multiple = build(case)
    assert backbone.multiple == multiple
    batch = ImageBatch.from_images([torch.randn(3, 67, 101), torch.randn(3, 83, 75)])
    padded = backbone.pad(batch)
    if multiple == 1:
        assert padded is batch
    H, W = padded.images.shape[2:]
    assert backbone.padded_size((83, 101)) == (H, W)
    assert (H % multiple, W % multiple) == (0, 0)
    assert max(H - 83, W - 101) < multiple
    assert padded.images[..., :83, :101].equal(batch.images)
    assert padded.padding_mask[..., :83, :101].equal(batch.padding_mask)
    assert padded.padding_mask[:, 83:].all()
    assert padded.padding_mask[..., 101:].all()
    assert not padded.images[padded.padding_mask[:, None].expand(-1, 3, -1, -1)].any()
    for features, stride in zip(backbone(padded.images), backbone.strides, strict=True):
        assert tuple(features.shape[2:]) == (-(-H // stride), -(-W // stride))


@pytest.mark.parametrize(
    ("case", "multiple"), [("rounds_down", 1), ("fails_between_multiples", 32)]
)
def test_required_padding_is_only_where_a_backbone_cannot_run_otherwise(case, multiple):
    backbone, _ = build(case, padding="required")
    assert backbone.multiple == multiple


def memory_of(model, images):
    found = []
    handle = model.encoder.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with handle, torch.no_grad():
        output = model(images)
    return found[0], output


@pytest.mark.parametrize(("name", "multiple"), [("test_convnext", 32), ("test_vit", 16)])
def test_cells_of_all_levels_are_where_their_pixels_are(name, multiple):
    strides = (8, 16, 32) if multiple == 32 else (16,)
    backbone = f"{{kind: timm, name: {name}, weights: none, out_strides: {list(strides)}}}"
    model = small_detector("multi_scale", f"model.backbone={backbone}").eval()
    sizes = [(67, 101), (40, 90), (1, 1)]
    memory, _ = memory_of(model, [torch.randn(3, *size) for size in sizes])
    assert isinstance(memory, Memory)
    H, W = model.backbone.padded_size((67, 101))
    centers = cell_centers(memory.level_shapes, memory.valid_ratios)
    starts = torch.tensor([0, *(h * w for h, w in memory.level_shapes)]).cumsum(0)
    for index, (height, width) in enumerate(sizes):
        for level, ratios in enumerate(memory.valid_ratios[index]):
            # The corner of the image, where a box at its edge ends, as a point of the level.
            corner = ratios * torch.tensor((W, H))
            torch.testing.assert_close(corner, torch.tensor((width, height)).float())
            if level >= len(strides):  # its convolution may need half a cell more
                continue
            begin, end = starts[level], starts[level + 1]
            pixels = centers[index, begin:end] * torch.tensor((width, height))
            rows, columns = memory.level_shapes[level]
            grid = [
                ((column + 0.5) * strides[level], (row + 0.5) * strides[level])
                for row in range(rows)
                for column in range(columns)
            ]
            torch.testing.assert_close(pixels, torch.tensor(grid), rtol=1e-5, atol=1e-3)
            # A cell is padding if its first pixel is.
            wanted = [
                x - strides[level] / 2 >= width or y - strides[level] / 2 >= height for x, y in grid
            ]
            assert memory.padding_mask[index, begin:end].tolist() == wanted


def test_the_last_pixels_count():
    """A backbone that rounds down would not see them, nor a detector that does not pad."""
    backbone = "model.backbone={kind: timm, name: test_convnext, weights: none}"
    model = small_detector("multi_scale", backbone).eval()
    image = torch.randn(3, 95, 95)
    changed = image.clone()
    changed[:, 64:, 64:] += 1
    (first, _), (second, _) = memory_of(model, [image]), memory_of(model, [changed])
    assert first.level_shapes[2] == (3, 3)
    assert not torch.equal(first.tokens[:, 144 + 36 + 8], second.tokens[:, 144 + 36 + 8])


def test_a_backbone_that_rounds_up_is_left_as_the_official_code_has_it():
    model = small_detector("multi_scale").eval()
    image = torch.randn(3, 67, 101)
    memory, _ = memory_of(model, [image])
    assert memory.level_shapes[:3] == ((9, 13), (5, 7), (3, 4))
    assert (memory.valid_ratios == 1).all()
    batch = ImageBatch.from_images([image, torch.randn(3, 97, 129)])
    memory, _ = memory_of(model, batch)
    for shape, ratios in zip(memory.level_shapes, memory.valid_ratios[0], strict=True):
        axes = zip((101, 67), (129, 97), shape[::-1], ratios, strict=True)
        for side, padded, cells, ratio in axes:
            # A cell is valid if the nearest pixel, as PyTorch has it, is not padding.
            valid = sum(cell * padded // cells < side for cell in range(cells))
            assert ratio == pytest.approx(valid / cells)


def test_explanations_are_relative_to_the_image_without_its_padding():
    backbone = "model.backbone={kind: timm, name: test_convnext, weights: none}"
    model = small_detector("multi_scale", backbone)
    labels = LabelSpace((1, 2, 3, 4, 5), tuple("abcde"))
    resize = Resize(short_side=67, max_size=101)
    detector = Detector(model, labels, transform=resize, device=torch.device("cpu"))
    found = []
    with model.queries.register_forward_hook(lambda *call: found.append(call[-1][0])):
        looks = detector.explain(torch.rand(3, 67, 101), queries=10)
    references = found[0].reference_points[0]
    assert len(looks) == len(references) == 10
    for look in looks:
        assert (references - look.reference_point).abs().amax(1).min() < 1e-6


def test_padding_by_the_caller_changes_nothing():
    backbone = "model.backbone={kind: timm, name: test_convnext, weights: none}"
    model = small_detector("two_stage", backbone).eval()
    image = torch.randn(3, 67, 101)
    _, wanted = memory_of(model, [image])
    _, given = memory_of(model, model.backbone.pad(ImageBatch.from_images([image])))
    assert given.last.boxes.equal(wanted.last.boxes)
    assert given.last.logits.equal(wanted.last.logits)


def test_a_model_of_fixed_size_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match="models that work are resnet50d, convnext_tiny") as raised:
        timm_backbone("test_coatnet")
    message = str(raised.value)
    assert message.startswith("model.backbone.name must be a model of timm")
    assert "got test_coatnet: " in message
    assert "images of 480 x 800 pixels end with RuntimeError" in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_model_that_timm_cannot_build_as_a_backbone_is_refused(monkeypatch):
    def create(*args, **options):
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ValueError, match=r"not implemented.*models that work are"):
        timm_backbone("test_byobnet")


class Rounding(nn.Module):
    """Maps of one layer, which rounds sizes as `size` says; with a parameter that is not used."""

    def __init__(self, stride, size):
        super().__init__()
        self.stride, self.size = stride, size
        self.norm, self.unused = nn.BatchNorm2d(3), nn.Linear(2, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        size = [self.size(side, self.stride) for side in images.shape[2:]]
        # One value per channel and image, which batch norm refuses in training mode.
        scale = self.norm(images.mean((2, 3), keepdim=True))
        return [nn.functional.adaptive_avg_pool2d(self.dropout(images * scale), size)]


def up(side, stride):
    return -(-side // stride)


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (up, 1),
        (lambda side, stride: side // stride, 8),
        (lambda side, stride: round(side / stride), 8),
        (lambda side, stride: up(up(side, 2) // 2, 2), 8),
        (lambda side, stride: up(side, stride) if side % 5 == 0 else 1, 40),
        (
            lambda side, stride: up(side, stride) + 1,
            "the map of stride 8 of 120 x 200 pixels has 16 x 26 cells instead of 15 x 25",
        ),
        (lambda side, stride: 7, "has 7 x 7 cells instead of 15 x 25"),
        (lambda side, stride: up(side, stride) if side % 3 == 0 else 1, "has 15 x 1 cells"),
        (lambda side, stride: 1 / 0, "images of 120 x 200 pixels end with ZeroDivisionError: div"),
    ],
)
def test_a_probe_finds_each_kind_of_rounding(size, found):
    network = Rounding(8, size)

    def probe():
        return probe_network(network, (8,), multiples=(8, 40), covering=True, channels_last=False)

    if isinstance(found, int):
        assert probe() == Probe(found, unused=("unused.weight", "unused.bias"))
    else:
        with pytest.raises(UnfitNetworkError, match=r"even if .* multiples of 8 or 40") as raised:
            probe()
        assert found in str(raised.value)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_probe_changes_nothing(mode):
    network = Rounding(8, up).train()
    network.unused.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random.seed(0)
    states = random.getstate(), torch.get_rng_state()
    with mode():
        probe_network(network, (8,), multiples=(8,), covering=True, channels_last=False)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert all(module.training for module in network.modules())
    assert network.norm.weight.requires_grad
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert [parameter for parameter in network.parameters() if parameter.grad is not None] == []


def test_building_draws_the_random_numbers_of_the_network_only():
    torch.manual_seed(0)
    timm.create_model("test_vit", features_only=True, out_indices=(5,), dynamic_img_size=True)
    wanted = torch.get_rng_state()
    torch.manual_seed(0)
    backbone = timm_backbone("test_vit", out_strides=(16,))
    assert torch.equal(torch.get_rng_state(), wanted)
    assert len(backbone.body.model.blocks) == 6  # all of them
