"""Lines and bars are drawn to scale, in SVG that is styled by the page."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import Element, Page
from PIL import Image

from deformable_detr.visualize.charts import (
    MAX_MARKERS,
    MAX_POINTS,
    Chart,
    Line,
    Stack,
    line_chart,
    to_svg,
    write_png,
)


def drawn(chart: Chart) -> Element:
    return Page(to_svg(chart)).root.children[0]


def of_class(svg: Element, name: str) -> list[Element]:
    return [one for one in svg.walk() if one.attributes.get("class") == name]


def corners(group: Element) -> list[tuple[float, float]]:
    numbers = list(map(float, re.findall(r"[\d.]+", str(group.all("path")[0].attributes["d"]))))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def ticks(svg: Element) -> list[str]:
    """Return the tick labels of the axes, the horizontal one first."""
    texts = [one.all("text")[0].text for one in of_class(svg, "axis") if one.all("text")]
    assert texts
    return texts


def test_line_is_drawn_to_scale_and_its_markers_have_texts() -> None:
    lines = [Line("a", [(0, 0), (50, 1), (100, 4)]), Line("b", [(0, 2)]), Line("none", [])]
    chart = line_chart("title", lines, x_label="x", y_label="y", y_range=(0, 4))
    svg = drawn(chart)
    [line], [other] = of_class(svg, "line s0"), of_class(svg, "line s1")
    (x0, y0), (x1, y1), (x2, y2) = corners(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.01)
    assert (y0 - y1) * 4 == pytest.approx(y0 - y2, abs=0.01)
    assert [use.text for use in line.all("use")] == ["a at 0: 0", "a at 50: 1", "a at 100: 4"]
    assert [use.text for use in other.all("use")] == ["b at 0: 2"]
    assert float(other.all("use")[0].attributes["y"]) == pytest.approx((y0 + y2) / 2, abs=0.01)
    assert chart.labels == ("a", "b")
    assert svg.attributes["aria-label"] == "title: a from 0 to 4; b from 2 to 2"


def test_equal_factors_are_equal_steps_of_a_logarithmic_axis() -> None:
    points = [(1, 0.01), (2, 0.1), (3, 1.0), (4, 0.0)]
    svg = drawn(line_chart("title", [Line("a", points)], x_label="", y_label="", log_y=True))
    (_, first), (_, second), (_, third) = corners(of_class(svg, "line s0")[0])  # 0 has none
    assert first - second == pytest.approx(second - third, abs=0.01)
    assert {"0.01", "0.1", "1"} < set(ticks(svg))


@pytest.mark.parametrize(
    ("values", "expected"),
    [((7.26018,), ["5", "10"]), ((7.26018, 7.26019), ["5", "10"]), ((1.0,), ["0.5", "1", "2"])],
)
def test_narrow_range_of_a_logarithmic_axis_has_short_ticks(
    values: tuple[float, ...], expected: list[str]
) -> None:
    line = Line("a", list(enumerate(values)))
    svg = drawn(line_chart("title", [line], x_label="", y_label="", log_y=True))

    assert ticks(svg)[-len(expected) :] == expected


def test_long_line_is_averaged_with_a_note() -> None:
    points = [(step, step % 2) for step in range(2 * MAX_POINTS)]
    chart = line_chart("title", [Line("a", points)], x_label="", y_label="", y_range=(0, 1))
    assert chart.note == "Each point is the mean of 2 records."
    assert len(chart.lines[0].points) == MAX_POINTS
    assert {y for _, y in chart.lines[0].points} == {0.5}
    assert drawn(chart).all("use") == []


def test_long_line_has_no_markers() -> None:
    for count in (MAX_MARKERS, MAX_MARKERS + 1):
        points = [(step, step) for step in range(count)]
        svg = drawn(line_chart("title", [Line("a", points)], x_label="", y_label=""))
        assert len(svg.all("use")) == (count if count <= MAX_MARKERS else 0)
    crowded = Line("a", [(x / 100, 0.5) for x in range(20)])
    wide = Line("b", [(x / 100, 0.2) for x in range(101)])
    assert drawn(line_chart("title", [crowded, wide], x_label="", y_label="")).all("use") == []


@pytest.mark.parametrize(
    ("points", "x_texts", "y_text"),
    [([(8, 0.5), (10, 0.7)], ["8", "9", "10"], "0.5"), ([(5, 2e-4)], ["5"], "2e-4")],
)
def test_ticks_of_steps_are_integers_and_small_numbers_are_short(
    points: list[tuple[float, float]], x_texts: list[str], y_text: str
) -> None:
    texts = ticks(drawn(line_chart("title", [Line("a", points)], x_label="", y_label="")))
    assert texts[: len(x_texts)] == x_texts
    assert y_text in texts[len(x_texts) :]


def test_parts_of_a_bar_are_stacked() -> None:
    stacks = (Stack("few", (1, 0)), Stack("many", (3, 1)))
    chart = Chart("title", "", "", labels=("found", "missed"), stacks=stacks)
    svg = drawn(chart)
    found, missed = of_class(svg, "part s1"), of_class(svg, "part s2")
    assert [bar.text.strip() for bar in (*found, *missed)] == [
        *("few: 1 found", "many: 3 found", "few: 0 missed", "many: 1 missed")
    ]
    heights = [np.ptp([y for _, y in corners(bar)]) for bar in (*found, *missed)]
    assert heights == pytest.approx([heights[0], 3 * heights[0], 0, heights[0]], abs=0.01)
    low, high = ([y for _, y in corners(bars[1])] for bars in (found, missed))
    assert min(low) == pytest.approx(max(high), abs=0.01)
    assert ticks(svg)[:2] == ["few", "many"]


def test_svg_is_deterministic_without_styles_and_addresses() -> None:
    lines = [Line("<b>&", [(0, 0), (1, 1)])]
    first, other = (line_chart(title, lines, x_label="x", y_label="y") for title in ("1", "2"))
    text = to_svg(first)
    assert text == to_svg(first)
    assert not re.search(r"style|color|font|https?:|url\(|clip|xmlns", text)
    assert "<b>" not in text
    ids = [re.findall(r'id="(\w+)"', to_svg(chart)) for chart in (first, other)]
    assert len({*ids[0], *ids[1]}) == len(ids[0]) + len(ids[1]) == 2  # one marker per point


def test_chart_without_data_is_empty() -> None:
    nothing = [
        line_chart("title", [Line("a", [])], x_label="", y_label=""),
        line_chart("title", [Line("a", [(1, 0.0)])], x_label="", y_label="", log_y=True),
        Chart("title", "", "", labels=("found",), stacks=(Stack("a", (0,)),)),
        Chart("title", "", "", labels=("found",)),
    ]
    assert all(chart.is_empty for chart in nothing)


def test_charts_are_side_by_side_in_a_picture(tmp_path: Path) -> None:
    lines = [Line("a", [(step, step**0.5) for step in range(50)])]
    chart = line_chart("title", lines, x_label="x", y_label="y")
    empty = line_chart("title", [], x_label="x", y_label="y", log_y=True)
    write_png(tmp_path / "a.png", [chart, empty])
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1000
    left, right = ((half < 200).mean() for half in np.array_split(pixels, 2, axis=1))
    assert 0.005 < right < left < 0.3


@pytest.mark.parametrize("log_y", [False, True])
def test_values_that_are_not_finite_are_left_out_and_counted(log_y: bool) -> None:
    points = [(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 2.0)]
    chart = line_chart("title", [Line("a", points)], x_label="", y_label="", log_y=log_y)
    assert chart.note == "2 values that are not finite are left out."
    assert chart.summary == "a from 1 to 2"
    assert len(drawn(chart).all("use")) == 2
