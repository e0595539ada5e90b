"""Medians, spreads and ratios of repeated measurements."""

import math
import statistics
from collections.abc import Mapping, Sequence


def summary(runs: Sequence[float]) -> dict[str, float | list[float]]:
    """Return median and spread (half the interquartile range) of repeated measurements."""
    quartiles = statistics.quantiles(runs, n=4) if len(runs) > 1 else [runs[0]] * 3
    return {
        "median": statistics.median(runs),
        "spread": (quartiles[2] - quartiles[0]) / 2,
        "runs": list(runs),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b if b else math.inf for a, b in zip(above, below, strict=True))


def quantile(counts: Mapping[str, float], share: float) -> float | None:
    """Return the quantile of a histogram (value: count) by the nearest rank; None of nothing."""
    left = share * sum(counts.values())
    for value in sorted(map(float, counts)):
        left -= counts[f"{value:g}"]
        if left <= 0:
            return value
    return None
