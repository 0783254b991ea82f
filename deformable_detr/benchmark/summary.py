"""Numbers of several rounds -> their median and spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """The spread of some numbers."""

    min: float
    lower_quartile: float
    median: float
    upper_quartile: float


def summarize(numbers: Sequence[float]) -> Summary:
    """Median and spread; quartiles are interpolated between the numbers."""
    if len(numbers) == 1:
        return Summary(numbers[0], numbers[0], numbers[0], numbers[0])
    lower, median, upper = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(min(numbers), lower, median, upper)


def paired_ratio(baseline: Sequence[float], own: Sequence[float]) -> Summary:
    """How many times less than the baseline, round by round.

    Rounds are paired, so that a machine that slows down for some of them changes both parts of
    their ratios.
    """
    return summarize([theirs / ours for theirs, ours in zip(baseline, own, strict=True)])
