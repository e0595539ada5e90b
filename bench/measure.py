"""Medians, spreads and ratios of repeated measurements."""

import math
import statistics
from collections.abc import Sequence


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
