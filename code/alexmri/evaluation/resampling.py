"""Draw people (or images) again and again: intervals, and tests of one answer against another."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from alexmri.evaluation.predictions import Floats, Ints
from alexmri.evaluation.rates import rates

_BLOCK = 1_000_000  # weights held at once (8 MB), however many images there are


def units_of(subjects_N: tuple[str, ...] | None, images: int) -> Ints:
    """Return the number of the person on each image, or of the image where people are unknown."""
    if subjects_N is None:
        return np.arange(images)
    units_N: Ints = np.unique(np.array(subjects_N), return_inverse=True)[1]
    return units_N


def resamples(units_N: Ints, replicates: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of unit counts (R, U): first all ones, then how often each unit was drawn."""
    U = int(units_N.max()) + 1
    yield np.ones((1, U))
    if U == 1:  # resampling one person or image says nothing about others
        return
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    size = max(1, _BLOCK // len(units_N))
    for start in range(0, replicates, size):
        R = min(size, replicates - start)
        drawn_RU = rng.integers(0, U, size=(R, U)) + U * np.arange(R)[:, None]
        yield np.bincount(drawn_RU.ravel(), minlength=R * U).reshape(R, U).astype(np.float64)


def estimate(sampled_R: Floats) -> dict[str, Any] | None:
    """Return the value (first) with its interval (the rest), None where the value is undefined."""
    if np.isnan(sampled_R[0]):
        return None
    resampled_R = sampled_R[1:][~np.isnan(sampled_R[1:])]
    interval = np.percentile(resampled_R, [2.5, 97.5]).tolist() if resampled_R.size else None
    return {"value": float(sampled_R[0]), "ci95": interval}


def spread(sampled_R: Floats) -> dict[str, float | None]:
    """Return the value (first) with the standard deviation of the rest."""
    deviation = float(sampled_R[1:].std(ddof=1)) if len(sampled_R) > 2 else None
    return {"value": float(sampled_R[0]), "standard_deviation": deviation}


def paired_test(
    one_UKK: Floats, other_UKK: Floats, *, permutations: int, seed: int
) -> dict[str, float | None]:
    """Return two-sided p-values that accuracy and macro F1 of two answers differ by chance alone.

    Both give the confusion matrix of every unit's images. Paired approximate randomisation (Noreen
    1989; for F scores Yeh 2000): if both were equally good, who gave which answer would not
    matter, so both answers of a random half of the units are swapped, `permutations` times, and p
    is the share of swaps with a difference as large as the one seen, that one included (Phipson
    and Smyth 2010): never below 1 / (permutations + 1). With people as units all images of a
    person are swapped together. None where there is one unit only.
    """
    U = len(one_UKK)
    names = ("accuracy", "macro_f1")
    if U == 1:
        return dict.fromkeys(names)
    one_UC, other_UC = one_UKK.reshape(U, -1), other_UKK.reshape(U, -1)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))
    as_large = dict.fromkeys(names, 0)
    seen: dict[str, float] = {}
    size = max(1, _BLOCK // U)
    starts = [-1, *range(0, permutations, size)]  # the first is what was seen: nothing swapped
    for start in starts:
        R = 1 if start < 0 else min(size, permutations - start)
        swapped_RU = np.zeros((1, U)) if start < 0 else rng.integers(0, 2, (R, U)).astype(float)
        moved_RC = swapped_RU @ (other_UC - one_UC)
        shape = (R, *one_UKK.shape[1:])
        first = rates((one_UC.sum(axis=0) + moved_RC).reshape(shape))
        second = rates((other_UC.sum(axis=0) - moved_RC).reshape(shape))
        for name in names:
            gap_R = np.abs(first[name] - second[name])
            seen.setdefault(name, float(gap_R[0]))
            as_large[name] += int((gap_R >= seen[name] - 1e-12).sum())
    return {name: count / (permutations + 1) for name, count in as_large.items()}
