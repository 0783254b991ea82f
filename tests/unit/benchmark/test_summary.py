import pytest

from deformable_detr.benchmark.summary import Summary, paired_ratio, summarize


def test_summary_holds_minimum_quartiles_and_median() -> None:
    assert summarize([5.0, 1.0, 3.0, 2.0, 4.0]) == Summary(1.0, 2.0, 3.0, 4.0)


def test_summary_is_described_by_median_and_quartiles() -> None:
    assert summarize([5.0, 1.0, 3.0, 2.0, 4.0]).describe(1) == "3.0 (2.0 to 4.0)"


def test_one_outlier_does_not_move_the_median() -> None:
    assert summarize([10.0, 11.0, 12.0, 11.0, 9000.0]).median == 11.0


def test_single_round_has_no_spread() -> None:
    assert summarize([3.0]) == Summary(3.0, 3.0, 3.0, 3.0)


def test_ratios_are_paired_by_round() -> None:
    """A machine at half speed in the second half does not change the ratio."""
    assert paired_ratio([40.0, 40.0, 80.0, 80.0], [1.0, 1.0, 2.0, 2.0]) == summarize([40.0] * 4)


def test_different_numbers_of_rounds_are_rejected() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])
