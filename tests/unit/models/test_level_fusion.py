from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from helpers.fusion import halved_sizes, num_parameters, random_maps, randomize
from torch import Tensor, nn

from deformable_detr.models.necks.level_fusion import ConvNormAct, LevelFusion

YOLO = {"norm": "batch", "init": "uniform", "compress_equal": False}
# Published configurations: (channels, out_channels by level, activation), finest first.
YOLOV3 = ((256, 256, 512), (256, 512, 1024), "leaky_relu")
MOBILE = ((128, 256, 512), (256, 512, 1024), "relu6")


@pytest.mark.parametrize(
    ("family", "level", "counts"),
    [
        (YOLOV3, 2, (7_106_803, 7_094_395)),
        (YOLOV3, 1, (1_915_123, 1_908_859)),
        (YOLOV3, 0, (734_451, 728_187)),
        (MOBILE, 2, (6_516_979, 6_504_571)),
        (MOBILE, 1, (1_620_211, 1_613_947)),
        (MOBILE, 0, (400_627, 397_435)),
    ],
)
def test_official_configurations_have_the_official_parameter_counts(
    family: tuple[tuple[int, ...], tuple[int, ...], str], level: int, counts: tuple[int, int]
) -> None:
    channels, out_channels, activation = family
    for rfb, count in zip((False, True), counts, strict=True):
        fusion = LevelFusion(
            channels,
            level,
            out_channels=out_channels[level],
            activation=activation,
            rfb=rfb,
            **YOLO,
        )
        assert num_parameters(fusion) == count


@pytest.mark.parametrize(
    ("channels", "counts"),
    [
        ((256, 512, 1024), (997_107, 4_091_123, 16_570_611)),
        ((128, 256, 512), (252_915, 1_029_875, 4_156_659)),
    ],
)
@pytest.mark.parametrize("logit_activation", [False, True])
def test_article_configurations_have_the_article_parameter_counts(
    channels: tuple[int, ...], counts: tuple[int, ...], logit_activation: bool
) -> None:
    for level, count in enumerate(counts):
        fusion = LevelFusion(
            channels, level, activation="silu", logit_activation=logit_activation, **YOLO
        )
        assert num_parameters(fusion) == count + 3 * logit_activation


def _with_logits(level: int, bias: Sequence[float]) -> LevelFusion:
    fusion = LevelFusion((8, 12, 16, 8), level, norm="batch", init="uniform").eval()
    randomize(fusion)
    nn.init.zeros_(fusion.weight_logits.weight)
    fusion.weight_logits.bias.data.copy_(torch.tensor(bias))
    return fusion


@pytest.mark.parametrize("level", range(4))
def test_equal_logits_give_the_mean_of_the_resized_maps(level: int) -> None:
    fusion = _with_logits(level, (0, 0, 0, 0))
    maps = random_maps((8, 12, 16, 8), halved_sizes(41, 37, 4))

    mean = torch.stack(fusion.resize(maps)).mean(dim=0)

    assert (fusion(maps).fused - mean).abs().max() < 1e-6


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("source", range(4))
def test_one_large_logit_gives_that_resized_map(level: int, source: int) -> None:
    fusion = _with_logits(level, [50.0 * (k == source) for k in range(4)])
    maps = random_maps((8, 12, 16, 8), halved_sizes(41, 37, 4))

    assert (fusion(maps).fused - fusion.resize(maps)[source]).abs().max() < 1e-5


@pytest.mark.parametrize("level", range(3))
def test_equal_constants_give_the_expanded_constant(level: int) -> None:
    fusion = LevelFusion((8, 8, 8), level, norm="batch", init="uniform").eval()
    randomize(fusion)
    fusion.resizers = nn.ModuleList(nn.Identity() for _ in range(3))
    sizes = halved_sizes(20, 12, 3)
    constant = torch.randn(2, 8, 1, 1)
    maps = [constant.expand(-1, -1, *size) for size in sizes]

    expected = fusion.expand(constant.expand(-1, -1, *sizes[level]))

    assert (fusion(maps).output - expected).abs().max() < 1e-6


def _plain_block(block: ConvNormAct, x: Tensor, kernel: int, stride: int) -> Tensor:
    x = F.conv2d(x, block.conv.weight, stride=stride, padding=(kernel - 1) // 2)
    norm = block.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    x = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return torch.where(x > 0, x, 0.1 * x)


def _repeat(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


def _plain_yolov3(fusion: LevelFusion, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Transcribe the published YOLOv3 block, whose level 0 is the coarsest: (output, weights)."""
    fine, middle, coarse = maps
    r = fusion.resizers
    match fusion.level:
        case 2:
            pooled = F.max_pool2d(fine, 3, stride=2, padding=1)
            resized = [
                _plain_block(r[0], pooled, 3, 2),
                _plain_block(r[1], middle, 3, 2),
                coarse,
            ]
        case 1:
            compressed = _repeat(_plain_block(r[2], coarse, 1, 1), 2)
            resized = [_plain_block(r[0], fine, 3, 2), middle, compressed]
        case _:
            compressed = _repeat(_plain_block(r[2], coarse, 1, 1), 4)
            resized = [fine, _repeat(middle, 2), compressed]
    pairs = zip(fusion.weight_blocks, resized, strict=True)
    reduced = torch.cat([_plain_block(block, x, 1, 1) for block, x in pairs], dim=1)
    logits = F.conv2d(reduced, fusion.weight_logits.weight, fusion.weight_logits.bias)
    exponentials = logits.exp()
    weights = exponentials / exponentials.sum(dim=1, keepdim=True)
    fused = sum(x * weights[:, k][:, None] for k, x in enumerate(resized))
    return _plain_block(fusion.expand, fused, 3, 1), weights


@pytest.mark.parametrize("level", range(3))
def test_the_official_block_agrees_with_a_plain_transcription(level: int) -> None:
    channels, out_channels = (8, 8, 16), (8, 16, 32)
    fusion = LevelFusion(channels, level, out_channels=out_channels[level], **YOLO)
    fusion = fusion.double().eval()
    randomize(fusion)
    maps = random_maps(channels, halved_sizes(24, 32, 3), torch.float64)

    output, weights = _plain_yolov3(fusion, maps)

    result = fusion(maps)
    assert (result.output - output).abs().max() < 1e-10
    assert (result.weights - weights).abs().max() < 1e-10


@pytest.mark.parametrize("level", range(3))
def test_every_source_and_every_parameter_gets_a_gradient(level: int) -> None:
    fusion = LevelFusion((8, 8, 16), level, norm="batch", init="uniform")
    maps = [m.requires_grad_() for m in random_maps((8, 8, 16), halved_sizes(17, 21, 3))]

    fusion(maps).output.square().sum().backward()

    assert all(m.grad.abs().max() > 0 for m in maps)
    silent = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("logit_activation", [False, True])
def test_the_article_logits_have_a_lower_bound_and_ours_do_not(logit_activation: bool) -> None:
    fusion = LevelFusion(
        (8, 8, 16), 0, activation="silu", logit_activation=logit_activation, **YOLO
    ).eval()
    randomize(fusion)
    logits: list[Tensor] = []
    fusion.weight_logits.register_forward_hook(lambda *call: logits.append(call[2]))

    fusion([100 * m for m in random_maps((8, 8, 16), halved_sizes(24, 32, 3))])

    lowest = logits[0].min()
    assert (-0.2785 <= lowest < -0.27) if logit_activation else (lowest < -1)


@pytest.mark.parametrize(
    ("level", "out_channels", "message"),
    [
        (3, None, r"level must be in 0..2, got 3"),
        (0, 64, r"out_channels must be the target's 32 with init 'own', got 64"),
    ],
)
def test_invalid_levels_and_widths_raise(
    level: int, out_channels: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LevelFusion((32, 32, 32), level, out_channels=out_channels)
