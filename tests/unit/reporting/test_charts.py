"""Lines and bars are where their numbers are."""

import pytest

from deformable_detr.reporting.charts import FRAME, MAX_POINTS, Line, Stack, bar_chart, line_chart


def corners(text: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_a_line_spans_the_frame_and_its_ticks_lie_on_the_same_scale() -> None:
    chart = line_chart(
        "title", [Line("a", [(0, 0), (50, 1), (100, 4)])], x_label="x", y_label="y", y_range=(0, 4)
    )
    assert chart is not None
    middle = (FRAME.left + FRAME.right) / 2
    height = FRAME.bottom - FRAME.top
    assert corners(chart.lines[0].corners) == [
        (FRAME.left, FRAME.bottom),
        (middle, FRAME.bottom - height / 4),
        (FRAME.right, FRAME.top),
    ]
    assert [dot.text for dot in chart.lines[0].dots] == ["a at 0: 0", "a at 50: 1", "a at 100: 4"]
    y_places = {tick.text: tick.place for tick in chart.y_ticks}
    assert (y_places["0"], y_places["1"], y_places["4"]) == (
        FRAME.bottom,
        FRAME.bottom - height / 4,
        FRAME.top,
    )
    assert chart.summary == "a from 0 to 4"


def test_equal_factors_are_equal_steps_of_a_logarithmic_axis() -> None:
    points = [(1, 0.01), (2, 0.1), (3, 1.0), (4, 0.0)]
    chart = line_chart("title", [Line("a", points)], x_label="", y_label="", log_y=True)
    assert chart is not None
    (_, first), (_, second), (_, third) = corners(chart.lines[0].corners)  # 0 has no logarithm
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert [tick.text for tick in chart.y_ticks] == ["0.01", "0.1", "1"]


def test_a_long_line_is_averaged_and_the_note_says_so() -> None:
    points = [(step, step % 2) for step in range(2 * MAX_POINTS)]
    chart = line_chart("title", [Line("a", points)], x_label="", y_label="", y_range=(0, 1))
    assert chart is not None
    places = corners(chart.lines[0].corners)
    assert len(places) == MAX_POINTS
    assert {y for _, y in places} == {(FRAME.top + FRAME.bottom) / 2}
    assert chart.note == "Each point is the mean of 2 records."
    assert chart.lines[0].dots == ()


@pytest.mark.parametrize("log_y", [False, True])
def test_one_value_has_one_tick_in_the_middle(log_y: bool) -> None:
    chart = line_chart("title", [Line("a", [(5, 2e-4)])], x_label="", y_label="", log_y=log_y)
    assert chart is not None
    assert [(tick.text, tick.place) for tick in chart.y_ticks] == [
        ("2e-4", (FRAME.top + FRAME.bottom) / 2)
    ]
    assert [tick.text for tick in chart.x_ticks] == ["5"]


def test_whole_numbers_have_whole_ticks() -> None:
    chart = line_chart("title", [Line("a", [(8, 0.5), (10, 0.7)])], x_label="", y_label="")
    assert chart is not None
    assert [tick.text for tick in chart.x_ticks] == ["8", "9", "10"]


def test_parts_of_a_bar_stand_on_each_other() -> None:
    stacks = [Stack("few", (1, 0)), Stack("many", (3, 1))]
    chart = bar_chart("title", stacks, ("found", "missed"), x_label="", y_label="")
    assert chart is not None
    unit = (FRAME.bottom - FRAME.top) / 4
    assert [(bar.y, bar.height) for bar in chart.bars] == [
        (FRAME.bottom - unit, unit),
        (FRAME.bottom - unit, 0),
        (FRAME.bottom - 3 * unit, 3 * unit),
        (FRAME.top, unit),
    ]
    assert [bar.text for bar in chart.bars][2:] == ["many: 3 found", "many: 1 missed"]
    assert chart.bars[0].x < chart.x_ticks[0].place < chart.bars[2].x < chart.x_ticks[1].place


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("title", [Line("a", [])], x_label="", y_label="") is None
    assert line_chart("t", [Line("a", [(1, 0.0)])], x_label="", y_label="", log_y=True) is None
    assert bar_chart("title", [Stack("a", (0,))], ("found",), x_label="", y_label="") is None
    assert bar_chart("title", [], ("found",), x_label="", y_label="") is None
