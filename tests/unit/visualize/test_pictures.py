import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageColor

from deformable_detr.labels import LabelSpace
from deformable_detr.visualize.attention import QueryAttention
from deformable_detr.visualize.pictures import (
    HIGHLIGHT,
    draw_deform_points,
    draw_level_weights,
    draw_query,
    draw_receptive_field,
)
from deformable_detr.visualize.receptive_field import ReceptiveField

GRAY = (90, 90, 90)
CATEGORIES = LabelSpace((7, 8), ("cat", "dog"))
Mask = npt.NDArray[np.bool_]


def _photo(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GRAY)


def _near(picture: Image.Image, color: tuple[int, ...], tolerance: int = 40) -> Mask:
    """Return a (height, width) mask of pixels near a color."""
    difference = np.asarray(picture).astype(int) - np.array(color)
    return (np.abs(difference) <= tolerance).all(axis=2)


def _photo_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """Return the place of the gray image in the picture: left, top, right, bottom."""
    gray = _near(picture, GRAY, 2)
    rows = np.flatnonzero(gray.mean(axis=1) > 0.3)
    columns = np.flatnonzero(gray.mean(axis=0) > 0.3)
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _places(mask: Mask, picture: Image.Image) -> tuple[float, float, float, float]:
    """Return the extent of a mask relative to the image: left, top, right, bottom."""
    left, top, right, bottom = _photo_box(picture)
    rows, columns = np.nonzero(mask[top:bottom, left:right])
    width, height = right - left, bottom - top
    return (
        columns.min() / width,
        rows.min() / height,
        columns.max() / width,
        rows.max() / height,
    )


def _attention(points: torch.Tensor, weights: torch.Tensor) -> QueryAttention:
    return QueryAttention(
        label=1,
        score=0.8,
        box_cxcywh=torch.tensor([0.5, 0.5, 0.4, 0.6]),
        reference_point=torch.tensor([0.5, 0.5]),
        points=points,
        weights=weights,
    )


def test_query_is_drawn_with_its_box() -> None:
    attention = _attention(torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2), 0.5))

    picture = draw_query(_photo(), attention, CATEGORIES)

    box = _places(_near(picture, ImageColor.getrgb(HIGHLIGHT)), picture)
    assert box == pytest.approx((0.3, 0.2, 0.7, 0.8), abs=0.01)


@pytest.mark.parametrize("size", [(400, 300), (20, 300)])
@pytest.mark.parametrize(
    ("name", "shown"), [("$x^{2$", "$x^{2$"), ("L" * 3000, "L" * 77 + "..."), ("a\n b", "a b")]
)
def test_name_that_is_no_plain_text_is_shown_in_the_title(
    name: str, shown: str, size: tuple[int, int]
) -> None:
    attention = _attention(torch.full((2, 1, 2, 2), 0.5), torch.full((2, 1, 2), 0.5))
    pictures = [
        draw_query(_photo(*size), attention, LabelSpace((7, 8), ("cat", one)))
        for one in (name, shown)
    ]

    assert pictures[0].tobytes() == pictures[1].tobytes()
    [edges] = {tuple(np.asarray(pictures[0])[:30, [0, -1]].min(axis=(0, 2)))}
    assert edges == (255, 255), "the title must end before the edges"


def test_point_of_the_largest_weight_is_drawn_in_the_brightest_color() -> None:
    points = torch.full((1, 1, 4, 2), 0.1)
    points[0, 0, 2] = torch.tensor([0.9, 0.85])
    weights = torch.tensor([[[0.0, 0.02, 0.97, 0.01]]])

    picture = draw_query(_photo(), _attention(points, weights), CATEGORIES)

    left, top, right, bottom = _places(_near(picture, (240, 249, 33), 10), picture)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((0.9, 0.85), abs=0.01)
    dark = _places(_near(picture, (13, 8, 135), 25), picture)
    assert dark[2] < 0.2
    assert dark[3] < 0.2


def test_points_outside_the_image_are_not_drawn() -> None:
    weights = torch.full((1, 1, 2), 0.5)

    outside = draw_query(_photo(), _attention(torch.full((1, 1, 2, 2), 1.5), weights), CATEGORIES)
    inside = draw_query(_photo(), _attention(torch.full((1, 1, 2, 2), 0.2), weights), CATEGORIES)

    left, top, right, bottom = _photo_box(inside)
    region = (slice(top + 80, bottom), slice(left, right))  # below the legend
    assert _near(inside, (240, 249, 33), 10)[region].any()
    assert not _near(outside, (240, 249, 33), 10)[region].any()


def test_receptive_field_is_drawn_at_its_place() -> None:
    strength = torch.zeros(60, 80, dtype=torch.float64)
    strength[45:48, 60:64] = 2.0
    field = ReceptiveField("backbone.body.3", (3, 4), (8, 10), strength)

    picture = draw_receptive_field(_photo(), field)

    bright = _places(_near(picture, (252, 255, 164), 10), picture)
    assert bright == pytest.approx((60 / 80, 45 / 60, 64 / 80, 48 / 60), abs=0.01)
    squares = _places(_near(picture, ImageColor.getrgb(HIGHLIGHT)), picture)
    assert squares == pytest.approx((60 / 80, 44.5 / 60, 64 / 80, 48.5 / 60), abs=0.01)


def test_weights_of_padding_are_not_drawn() -> None:
    wide = [torch.zeros(1, 6, 8)]
    wide[0][:, :, 5:] = 1.0  # 5 of 8 columns are the image's
    narrow = [torch.zeros(1, 6, 5)]
    picture = draw_level_weights(_photo(), wide, share=(5 / 8, 1.0))
    assert np.array_equal(np.asarray(picture), np.asarray(draw_level_weights(_photo(), narrow)))


def test_level_weights_have_one_row_per_target_and_one_column_per_source() -> None:
    weights = [torch.zeros(3, 8 >> level, 8 >> level) for level in range(3)]
    for target, source in ((0, 1), (1, 2), (2, 0)):
        weights[target][source] = 1.0

    picture = np.asarray(draw_level_weights(_photo(), weights)).astype(int)

    height, width = picture.shape[0], picture.shape[1] * 0.86  # without the colorbar
    for target in range(3):
        for source in range(3):
            row, column = round((target + 0.55) * height / 3), round((source + 0.5) * width / 3)
            red, _, blue = picture[row, column]
            is_yellow = red > blue + 50
            assert is_yellow == ((target, source) in {(0, 1), (1, 2), (2, 0)}), (target, source)


def test_level_weights_that_are_not_finite_are_not_drawn() -> None:
    weights = [torch.full((2, 3, 4), torch.nan), torch.ones(2, 2, 2)]
    with pytest.raises(ValueError, match=r"weights to level 0 must be finite .* got 24 of 24"):
        draw_level_weights(_photo(), weights)


def test_deformable_points_are_drawn_at_their_places() -> None:
    points = torch.tensor([[0.25, 0.3], [0.4, 0.6]])

    picture = draw_deform_points(_photo(), points, (0.75, 0.5), "layer")

    red = _places(_near(picture, (255, 0, 0), 30), picture)
    assert red == pytest.approx((0.25, 0.3, 0.4, 0.6), abs=0.012)
    left, top, right, bottom = _places(_near(picture, ImageColor.getrgb(HIGHLIGHT)), picture)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((0.75, 0.5), abs=0.005)


def test_without_deformable_points_only_the_cross_is_drawn() -> None:
    picture = draw_deform_points(_photo(), torch.zeros(0, 2), (0.5, 0.5), "layer")

    assert not _near(picture, (255, 0, 0), 30).any()
