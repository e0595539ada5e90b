"""Choose which intensities become black and white, and scale all others between them.

MR intensities have no unit. The brightest voxel may be a single hot one, so percentiles decide.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0.5, 99.5)
# Rows that are scaled at a time, each needing 8 bytes per pixel.
ROWS = 256

Bounds = tuple[float, float]


def percentile_bounds(values: NDArray[Any], percentiles: Bounds = PERCENTILES) -> Bounds:
    """Return the values at two percentiles (0 to 100), of an array of any shape.

    A percentile is the smallest value that at least this share of all values does not exceed
    (`inverted_cdf` in numpy). Where both are equal, as in a mask, the extremes are returned.
    """
    # np.partition takes 2 s for a head of 8.7 million voxels, many of them 0; this takes 0.2.
    ordered = np.sort(values, axis=None)
    low, high = (ordered[_rank(percentile, ordered.size)] for percentile in percentiles)
    if low == high:
        low, high = ordered[0], ordered[-1]
    return float(low), float(high)


def percentile_bounds_of_counts(counts_V: NDArray[np.int64]) -> Bounds:
    """Return the same for values 0, 1, 2, … of which `counts_V` (V,) tells how many there are."""
    total = np.cumsum(counts_V)
    low, high = (
        int(np.searchsorted(total, _rank(percentile, int(total[-1])), side="right"))
        for percentile in PERCENTILES
    )
    if low == high:
        present = np.flatnonzero(counts_V)
        low, high = int(present[0]), int(present[-1])
    return float(low), float(high)


def scale(
    values: NDArray[Any], bounds: Bounds, dtype: type[np.uint8 | np.uint16] = np.uint8
) -> NDArray[Any]:
    """Return `values` (H, W) or (H, W, C) as `dtype`: black at the lower bound, white at the upper.

    Values outside of the bounds are cut. Where the bounds are equal, all is black.
    """
    low, high = bounds
    white = np.iinfo(dtype).max
    factor = white / (high - low) if high > low else 0.0
    scaled: NDArray[Any] = np.empty(values.shape, dtype)
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS].astype(np.float64)
        rows -= low
        rows *= factor
        np.clip(rows, 0, white, out=rows)
        scaled[start : start + ROWS] = np.rint(rows, out=rows)
    return scaled


def _rank(percentile: float, count: int) -> int:
    """Return where the percentile of `count` sorted values stands, counted from 0."""
    # Rounded, since 0.07 * 100 is a little more than 7.
    return max(0, math.ceil(round(percentile * count / 100, 6)) - 1)
