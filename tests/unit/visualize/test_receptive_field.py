import pytest
import torch
from helpers.models import small_detector
from torch import Tensor, nn

from deformable_detr.visualize.receptive_field import (
    ReceptiveField,
    effective_receptive_field,
    find_layer,
)


def _box_filters(count: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return means of 3x3 pixels, per color channel, in float64."""
    layers = nn.Sequential(
        *(
            nn.Conv2d(
                3, 3, 3, stride=stride, padding=dilation, dilation=dilation, groups=3, bias=False
            )
            for _ in range(count)
        )
    )
    layers = layers.double().eval()
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    return layers


def _images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize(
    ("count", "profile"),
    [(1, [1, 1, 1]), (2, [1, 2, 3, 2, 1]), (3, [1, 3, 6, 7, 6, 3, 1])],
)
def test_box_filters_have_the_profile_of_repeated_sums(count: int, profile: list[int]) -> None:
    model = _box_filters(3)

    field = effective_receptive_field(model, _images(2, 15, 19), str(count - 1), cell=(6, 9))

    line = torch.tensor(profile, dtype=torch.float64) / 3**count
    expected = torch.zeros(15, 19, dtype=torch.float64)
    expected[6 - count : 7 + count, 9 - count : 10 + count] = 3 * line[:, None] * line
    assert (field.strength - expected).abs().max() < 1e-15
    assert field.reach() == (2 * count + 1, 2 * count + 1)
    assert field.map_size == (15, 19)


def test_strides_and_dilation_widen_the_reach() -> None:
    strided = effective_receptive_field(_box_filters(2, stride=2), _images(1, 40, 48), "1")
    dilated = effective_receptive_field(_box_filters(2, dilation=3), _images(1, 40, 48), "1")

    assert strided.cell == (5, 6)
    assert strided.map_size == (10, 12)
    assert strided.reach() == (7, 7)
    rows = strided.strength.sum(dim=1).nonzero().flatten()
    assert rows.float().mean() == 5 * 4
    assert dilated.reach() == (13, 13)
    assert int((dilated.strength > 0).sum()) == 25


def test_random_network_agrees_with_finite_differences() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2), nn.Tanh()
    )
    model = model.double().eval()
    images = _images(2, 9, 8)
    step = 1e-6

    field = effective_receptive_field(model, images, "3", cell=(1, 2))

    expected = torch.zeros(9, 8, dtype=torch.float64)
    with torch.no_grad():
        for image in images:
            for index in range(image.numel()):
                moved = torch.zeros_like(image).flatten()
                moved[index] = step
                moved = moved.view_as(image)
                up, down = model(torch.stack((image + moved, image - moved)))[:, :, 1, 2].sum(1)
                slope = (up - down) / (2 * step)
                expected[index % 72 // 8, index % 8] += slope.abs() / len(images)
    assert (field.strength - expected).abs().max() < 1e-8


def test_layers_of_a_deformable_detector_are_found_by_name() -> None:
    model = small_detector("multi_scale").eval()

    field = effective_receptive_field(model, torch.randn(1, 3, 64, 96), "neck.projections.1")

    assert field.map_size == (4, 6)
    assert field.cell == (2, 3)
    assert field.strength.shape == (64, 96)
    assert field.strength.sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.neck.projections[1]._forward_hooks


def test_layers_after_the_given_one_do_not_run() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError

    model = nn.Sequential(*_box_filters(1), Fails()).eval()

    assert effective_receptive_field(model, _images(1, 5, 5), "0").reach() == (3, 3)


def test_field_is_computed_under_no_grad() -> None:
    with torch.no_grad():
        field = effective_receptive_field(_box_filters(1), _images(1, 5, 5), "0")

    assert field.reach() == (3, 3)


@pytest.mark.parametrize(
    ("share", "side"),
    [(9 / 81, 1), (10 / 81, 3), (0.5, 3), (49 / 81, 3), (50 / 81, 5), (0.95, 5), (1.0, 5)],
)
def test_energy_square_of_two_box_filters(share: float, side: int) -> None:
    # Shares of 1, 3 and 5 pixels around the middle of the profile: 9, 49 and 81 of 81.
    field = effective_receptive_field(_box_filters(2), _images(1, 13, 17), "1")

    assert field.energy_square(share) == pytest.approx(
        (8.5 - side / 2, 6.5 - side / 2, 8.5 + side / 2, 6.5 + side / 2)
    )


def test_energy_square_is_centered_on_the_strength() -> None:
    strength = torch.zeros(20, 30, dtype=torch.float64)
    strength[3, 24:26] = 1.0

    square = ReceptiveField("layer", (0, 0), (1, 1), strength).energy_square(1.0)

    assert square == pytest.approx((24, 2.5, 26, 4.5))


def test_cell_without_dependence_has_no_square() -> None:
    field = ReceptiveField("layer", (0, 0), (1, 1), torch.zeros(4, 4, dtype=torch.float64))

    assert field.reach() == (0, 0)
    with pytest.raises(ValueError, match="layer layer must depend on the input"):
        field.energy_square(0.5)


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_share_out_of_range_is_rejected(share: float) -> None:
    field = ReceptiveField("layer", (0, 0), (1, 1), torch.ones(4, 4, dtype=torch.float64))

    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        field.energy_square(share)


def test_model_in_training_mode_is_rejected() -> None:
    with pytest.raises(ValueError, match="model must be in eval mode"):
        effective_receptive_field(_box_filters(1).train(), _images(1, 5, 5), "0")


@pytest.mark.parametrize("cell", [(5, 0), (0, -1)])
def test_cell_outside_the_map_is_rejected(cell: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cell must be within the map of 5 x 7 cells of layer 0"):
        effective_receptive_field(_box_filters(1), _images(1, 5, 7), "0", cell=cell)


def test_layer_without_a_map_is_rejected() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).double().eval()

    with pytest.raises(ValueError, match=r"layer 1 must return a map .*, got a tensor of shape"):
        effective_receptive_field(model, _images(1, 5, 5), "1")


def test_layer_that_does_not_run_is_rejected() -> None:
    model = _box_filters(1)
    model[0].add_module("idle", nn.Identity())

    with pytest.raises(ValueError, match=r"layer 0\.idle must take part in the forward pass"):
        effective_receptive_field(model, _images(1, 5, 5), "0.idle")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("neck.projection.1", "neck.projections.1"),
        ("encoder.layer", "encoder.layers"),
        ("", "neck"),
    ],
)
def test_error_of_an_unknown_layer_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="layer must be a module of the model, got") as error:
        find_layer(small_detector("multi_scale"), name)

    assert nearest in str(error.value).split("the nearest are ")[1].split(", ")


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = _box_filters(2)
    model[1].weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"receptive field of layer 1 must .*, got \d+ of 63 num"):
        effective_receptive_field(model, _images(1, 7, 9), "1")
