import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deformable_detr.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from deformable_detr.ops.geometry import ConvGeometry
from deformable_detr.structures import Size
from deformable_detr.visualize.deform_points import (
    DeformConvCall,
    chained_points,
    record_deform_convs,
)


def deformable(kernel_size: int = 3, **options: int) -> DeformConv2d:
    """Return a deformable convolution whose taps are moved by about a cell."""
    layer = DeformConv2d(4, 4, kernel_size, **options)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    return layer


def _call(
    offsets: Tensor, *, input_size: Size = (9, 11), stride: tuple[int, int] = (1, 1)
) -> DeformConvCall:
    geometry = ConvGeometry((3, 3), stride, padding=(1, 1))
    return DeformConvCall("conv", offsets, geometry, input_size)


def test_points_without_offsets_are_the_taps() -> None:
    points = _call(torch.zeros(1, 18, 9, 11)).points((4, 7))

    expected = [(x + 0.5, y + 0.5) for y in (3, 4, 5) for x in (6, 7, 8)]
    assert points.tolist() == [list(point) for point in expected]


@given(
    kernel_size=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    group=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_bilinear_samples_at_the_points_reproduce_the_convolution(
    kernel_size: int, stride: int, padding: int, dilation: int, group: int, seed: int
) -> None:
    torch.manual_seed(seed)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    layer = deformable(kernel_size, offset_groups=2, **geometry).double()
    features = torch.randn(2, 4, 8, 9, dtype=torch.float64)

    with torch.no_grad(), record_deform_convs(layer) as calls:
        output = layer(features)

    (call,) = calls
    assert call.output_size == output.shape[2:]
    cell = (output.shape[2] - 1, output.shape[3] // 2)
    channels = slice(2 * group, 2 * group + 2)  # channels of the offset group
    points = call.points(cell, image=1, group=group)
    # Zeros around the map, so that a point on its edge is blended with zero as in the operator.
    padded = F.pad(features[1:, channels], (9, 9, 9, 9))
    grid = 2 * (points + 9) / torch.tensor([27.0, 26.0], dtype=torch.float64) - 1
    samples = F.grid_sample(padded, grid[None, None], align_corners=False)[0, :, 0]  # (2, K)
    share = (layer.weight[:, channels].flatten(2) * samples).sum((1, 2))
    with torch.no_grad():
        layer.weight[:, channels] = 0
    rest = layer(features)[1, :, cell[0], cell[1]]
    assert torch.allclose(rest + share, output[1, :, cell[0], cell[1]], atol=1e-9)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_recording_keeps_the_output_and_names_the_modules(mode: type) -> None:
    modulated = ModulatedDeformConv2d(4, 4, 3, padding=1, stride=2)
    model = nn.Sequential(deformable(padding=1), nn.ReLU(), modulated)
    features = torch.randn(1, 4, 9, 12)

    with mode():
        before = model(features)
        with record_deform_convs(model) as calls:
            output = model(features)
        model(features)

    assert torch.equal(output, before)
    assert [call.module for call in calls] == ["0", "2"]
    assert calls[1].geometry == ConvGeometry((3, 3), stride=(2, 2), padding=(1, 1))
    assert calls[1].input_size == (9, 12)
    assert calls[1].output_size == (5, 6)
    assert calls[1].offsets.shape == (1, 18, 5, 6)
    assert not any(call.offsets.requires_grad for call in calls)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    model = nn.Sequential(deformable())

    with pytest.raises(RuntimeError), record_deform_convs(model):
        model(torch.randn(1, 3, 8, 8))

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_chain_without_offsets_covers_the_theoretical_receptive_field() -> None:
    calls = [
        _call(torch.zeros(1, 18, 20, 24), input_size=(20, 24)),
        _call(torch.zeros(1, 18, 10, 12), input_size=(20, 24), stride=(2, 2)),
        _call(torch.zeros(1, 18, 10, 12), input_size=(10, 12)),
    ]

    points = chained_points(calls, (5, 6))

    assert points.shape == (729, 2)
    assert points.min(dim=0).values.tolist() == [8.5, 6.5]  # 12 - 2 - 1 - 1 columns, 10 - 4 rows
    assert points.max(dim=0).values.tolist() == [16.5, 14.5]


def test_chain_follows_the_offsets_of_the_cells_it_reaches() -> None:
    last = torch.zeros(1, 18, 9, 11)
    last[:, 1::2] = 2.4  # every tap to the right: from columns 4..6 into the cells of 6..8
    first = torch.zeros(1, 18, 9, 11)
    first[:, 0::2, :, 8] = -3.0  # taps of the cells of column 8 upwards

    points = chained_points([_call(first), _call(last)], (4, 5))

    cells = [(row, column) for row in (3, 4, 5) for column in (6, 7, 8)]
    expected = [
        (column + x + 0.5, row + y + 0.5 - 3 * (column == 8))
        for row, column in cells
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    ]
    assert points.tolist() == [list(point) for point in expected]


def test_points_outside_the_map_end_a_chain() -> None:
    far = torch.full((1, 18, 9, 11), 100.0)

    assert chained_points([_call(torch.zeros(1, 18, 9, 11)), _call(far)], (4, 5)).shape == (0, 2)


def test_layers_that_are_not_consecutive_are_rejected() -> None:
    calls = [_call(torch.zeros(1, 18, 5, 6)), _call(torch.zeros(1, 18, 9, 11))]

    with pytest.raises(ValueError, match="calls must follow each other, got an output of"):
        chained_points(calls, (4, 5))


def test_empty_chain_is_rejected() -> None:
    with pytest.raises(ValueError, match="calls must hold at least one deformable convolution"):
        chained_points([], (0, 0))


@pytest.mark.parametrize("cell", [(9, 0), (0, 11), (-1, 0)])
def test_cell_outside_the_map_is_rejected(cell: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cell must be within the map of 9 x 11 cells"):
        _call(torch.zeros(1, 18, 9, 11)).points(cell)


def test_offsets_that_are_not_finite_are_not_followed() -> None:
    offsets = torch.zeros(1, 18, 9, 11)
    offsets[0, 3, 4, 5] = torch.nan
    with pytest.raises(ValueError, match="offsets of conv must be finite to be drawn, got 1 of 17"):
        chained_points([_call(offsets)], (4, 5))
