"""Median and spread of the measurements of several rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Minimum, quartiles and median."""

    min: float
    lower_quartile: float
    median: float
    upper_quartile: float

    def describe(self, digits: int) -> str:
        """Format median and quartiles with the given number of decimals."""
        low, high = self.lower_quartile, self.upper_quartile
        return f"{self.median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def summarize(numbers: Sequence[float]) -> Summary:
    """Compute median and spread; quartiles are interpolated."""
    if len(numbers) == 1:
        return Summary(numbers[0], numbers[0], numbers[0], numbers[0])
    lower, median, upper = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(min(numbers), lower, median, upper)


def paired_ratio(baseline: Sequence[float], own: Sequence[float]) -> Summary:
    """Compute baseline over own, paired by round: the speed-up if the numbers are times.

    Pairing cancels a slowdown of the machine during some rounds, which affects both numbers.
    """
    return summarize([theirs / ours for theirs, ours in zip(baseline, own, strict=True)])
