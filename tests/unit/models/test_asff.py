from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.fusion import halved_sizes, num_parameters, random_maps, randomize
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deformable_detr.models.necks.asff import ASFF, ASFFNeck
from deformable_detr.models.necks.channel_mapper import ChannelMapper

ODD_SIZES = ((100, 134), (50, 67), (25, 34), (13, 17))


def test_golden_number_of_parameters_for_a_detector() -> None:
    assert num_parameters(ASFF(256, 4)) == 6_366_736


@given(
    height=st.integers(16, 45),
    width=st.integers(16, 45),
    num_levels=st.integers(3, 5),
    init=st.sampled_from(["own", "uniform"]),
)
def test_every_level_keeps_its_shape(height: int, width: int, num_levels: int, init: str) -> None:
    maps = random_maps((32,) * num_levels, halved_sizes(height, width, num_levels))
    fusion = ASFF(32, num_levels, init=init)

    assert [m.shape for m in fusion(maps)] == [m.shape for m in maps]


def test_every_level_keeps_its_shape_at_the_sizes_of_a_real_image() -> None:
    maps = random_maps((32,) * 4, ODD_SIZES)

    assert [m.shape for m in ASFF(32, 4)(maps)] == [m.shape for m in maps]


def test_sizes_may_be_rounded_down_as_patch_embeddings_do() -> None:
    maps = random_maps((32,) * 4, ((103, 77), (51, 38), (25, 19), (13, 9)))

    assert [m.shape for m in ASFF(32, 4)(maps)] == [m.shape for m in maps]


def test_weights_sum_to_one_and_are_between_zero_and_one() -> None:
    fusion = ASFF(32, 4, init="uniform").eval()
    randomize(fusion)

    for level in fusion.inspect(random_maps((32,) * 4, ODD_SIZES)):
        assert (level.weights.sum(dim=1) - 1).abs().max() < 1e-6
        assert level.weights.min() > 0
        assert level.weights.max() < 1
        assert level.weights.std(dim=(2, 3)).min() > 1e-3, "weights differ from cell to cell"


def test_inspection_returns_outputs_weights_and_channel_sums() -> None:
    maps = random_maps((32,) * 3, halved_sizes(21, 30, 3))
    fusion = ASFF(32, 3, init="uniform")

    for features, output, level in zip(maps, fusion(maps), fusion.inspect(maps), strict=True):
        N, _, H, W = features.shape
        assert torch.equal(level.output, output)
        assert level.weights.shape == (N, 3, H, W)
        assert level.channel_sum.shape == (N, H, W)
        assert torch.allclose(level.channel_sum, level.fused.sum(dim=1))


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_own_initialization_is_the_identity_and_gets_gradients(
    activation: str, norm: str
) -> None:
    fusion = ASFF(32, 4, norm=norm, activation=activation)
    maps = random_maps((32,) * 4, halved_sizes(33, 41, 4))

    outputs = fusion(maps)

    for features, output in zip(maps, outputs, strict=True):
        assert (output - features).abs().max() < 1e-6
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for level in fusion.levels:
        assert level.expand.norm.weight.grad.abs().min() > 0


def test_the_own_initialization_favors_the_target_level() -> None:
    level = ASFF(32, 4).inspect(random_maps((32,) * 4, halved_sizes(33, 41, 4)))[2]

    expected = torch.tensor([0.0, 0.0, 3.0, 0.0]).softmax(dim=0)

    assert expected[2] == pytest.approx(0.87, abs=0.005)
    assert torch.allclose(level.weights, expected.view(1, 4, 1, 1).expand_as(level.weights))


def test_rfb_changes_the_width_of_the_weights_only() -> None:
    plain = ASFF(32, 3).state_dict()
    narrow = ASFF(32, 3, rfb=True).state_dict()

    changed = {name for name in plain if plain[name].shape != narrow[name].shape}

    assert plain.keys() == narrow.keys()
    assert {name.split(".")[2] for name in changed} == {"weight_blocks", "weight_logits"}
    assert {plain[n].shape[0] for n in changed if n.endswith("blocks.0.conv.weight")} == {16}
    assert {narrow[n].shape[0] for n in changed if n.endswith("blocks.0.conv.weight")} == {8}


def test_masked_padding_does_not_reach_other_cells() -> None:
    sizes = halved_sizes(32, 48, 3)
    maps = random_maps((32,) * 3, sizes)
    masks = [torch.zeros(2, *size, dtype=torch.bool) for size in sizes]
    for mask in masks:
        mask[:, :, mask.shape[2] // 2 :] = True
    other = [m + 100 * mask[:, None] for m, mask in zip(maps, masks, strict=True)]

    def fused(mask_padding: bool, sources: Sequence[Tensor]) -> list[Tensor]:
        fusion = ASFF(32, 3, init="uniform", mask_padding=mask_padding)
        randomize(fusion)
        return [level.output for level in fusion.inspect(sources, masks)]

    assert all(
        torch.equal(a, b) for a, b in zip(fused(True, maps), fused(True, other), strict=True)
    )
    assert not torch.allclose(fused(False, maps)[0][..., :20], fused(False, other)[0][..., :20])


def test_the_neck_returns_the_fused_maps_and_the_masks_of_the_mapper() -> None:
    fusion = ASFF(64, 3, init="uniform", mask_padding=True)
    neck = ASFFNeck((8, 16), embed_dim=64, fusion=fusion)
    mapper = ChannelMapper((8, 16), embed_dim=64, num_levels=3)
    mapper.load_state_dict(neck.state_dict(), strict=False)
    features = random_maps((8, 16), ((12, 10), (6, 5)))
    padding_mask = torch.zeros(2, 96, 80, dtype=torch.bool)
    padding_mask[1, :, 40:] = True

    pyramid = neck(features, padding_mask)

    mapped = mapper(features, padding_mask)
    expected = fusion(mapped.maps, mapped.padding_masks)
    assert all(torch.equal(a, b) for a, b in zip(pyramid.maps, expected, strict=True))
    masks = zip(pyramid.padding_masks, mapped.padding_masks, strict=True)
    assert all(torch.equal(a, b) for a, b in masks)


def test_weights_survive_saving_and_loading(tmp_path: Path) -> None:
    fusion = ASFF(64, 2)
    randomize(fusion)
    torch.save(fusion.state_dict(), tmp_path / "asff.pth")
    other = ASFF(64, 2)
    other.load_state_dict(torch.load(tmp_path / "asff.pth", weights_only=True))
    maps = random_maps((64,) * 2, ((9, 7), (5, 4)))

    assert all(torch.equal(a, b) for a, b in zip(fusion(maps), other(maps), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_levels": 1}, "num_levels must be at least 2, got 1; one level has nothing to fuse"),
        ({"channels": 40}, "channels must be multiples of 32 with norm 'group', got 40"),
        ({"activation": "relu6"}, "activation must be 'leaky_relu' or 'silu' with init 'own'"),
        ({"activation": "gelu"}, "activation must be one of"),
        ({"norm": "layer"}, "norm must be one of"),
        ({"init": "zero"}, "init must be one of"),
        ({"logit_activation": True}, "init must be 'uniform' with logit_activation, got 'own'"),
    ],
)
def test_invalid_options_raise(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASFF(**{"channels": 32, "num_levels": 3, **options})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((8, 8), (4, 4)), "number of maps must be 3, got 2"),
        (((16, 16), (8, 8), (8, 8)), "maps must halve from level to level, got sizes"),
        (((32, 32), (8, 8), (4, 4)), "ask for out_strides that double"),
    ],
)
def test_maps_that_do_not_halve_raise(sizes: tuple[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ASFF(32, 3)(random_maps((32,) * len(sizes), sizes))


def test_missing_masks_raise() -> None:
    with pytest.raises(ValueError, match="padding_masks must be given with mask_padding"):
        ASFF(32, 3, mask_padding=True)(random_maps((32,) * 3, halved_sizes(16, 16, 3)))


def test_the_own_initialization_keeps_features_on_masked_padding() -> None:
    maps = random_maps((32,) * 3, halved_sizes(16, 16, 3))
    masks = [torch.ones(2, *m.shape[2:], dtype=torch.bool) for m in maps]

    outputs = ASFF(32, 3, mask_padding=True)(maps, masks)

    assert all((a - b).abs().max() < 1e-6 for a, b in zip(outputs, maps, strict=True))
