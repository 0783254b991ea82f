"""Median and spread of the numbers of several rounds."""

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

    def describe(self, digits: int) -> str:
        """Median and quartiles, with so many digits behind the point."""
        low, high = self.lower_quartile, self.upper_quartile
        return f"{self.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def summarize(numbers: Sequence[float]) -> Summary:
    """Median and spread; quartiles are interpolated between the numbers."""
    if len(numbers) == 1:
        return Summary(numbers[0], numbers[0], numbers[0], numbers[0])
    lower, median, upper = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(min(numbers), lower, median, upper)


def paired_ratio(baseline: Sequence[float], own: Sequence[float]) -> Summary:
    """Baseline over own, round by round: the speed-up where the numbers are times.

    Rounds are paired, so that a machine that slows down for some of them changes both parts of
    their ratios.
    """
    return summarize([theirs / ours for theirs, ours in zip(baseline, own, strict=True)])
