"""Tell figures from chance by resampling people: intervals, tests of two answers and of groups."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from alexmri.evaluation.predictions import Floats, Ints, Predictions, by_subject
from alexmri.evaluation.rates import rates, unit_matrices

AVERAGES = ("accuracy", "balanced_accuracy", "macro_f1")
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


def compare(
    one: Predictions, other: Predictions, *, seed: int = 0, replicates: int = 1000
) -> dict[str, Any]:
    """Return how far `one` is above `other`, two models' predictions of the same N images.

    "difference" has accuracy and macro F1 as {"value", "ci95", "p_value"}: in -1..1, above 0 where
    `one` is better, by the resamples and the paired test of `measure`, which draw whole subjects
    where these are known. The averages beside it are the other model's own. In
    "subject_level" stands the same for subjects, None where these are unknown.

    Raises:
        ValueError: other images, in another order, or other classes.
    """
    if (one.classes, one.paths) != (other.classes, other.paths):
        raise ValueError("Expected two models' predictions of the same images and classes.")
    subjects, others = by_subject(one), by_subject(other)
    levels = [(one, other), (subjects, others)]
    by_image, by_person = (
        compare_answers(
            each.labels_N,
            each.probabilities_NK.argmax(axis=1),
            against.probabilities_NK.argmax(axis=1),
            units_of(each.subjects_N, len(each.labels_N)),
            len(one.classes),
            seed=seed,
            replicates=replicates,
        )
        if each and against
        else None
        for each, against in levels
    )
    return {**(by_image or {}), "subject_level": by_person}


def compare_answers(
    labels_N: Ints,
    one_N: Ints,
    other_N: Ints,
    units_N: Ints,
    K: int,
    *,
    seed: int,
    replicates: int,
) -> dict[str, Any]:
    """Return the averages of the answers `other_N`, and the "difference" of `one_N` to them.

    Both come from the same resamples of the units, so what makes a resample easy or hard for both
    drops out. Labels lie in 0..K-1, answers too or are `OTHER`; all arrays are (N,).
    """
    matrices = [unit_matrices(labels_N, each_N, units_N, K) for each_N in (one_N, other_N)]
    sampled: list[list[dict[str, Floats]]] = [[], []]
    for counts_RU in resamples(units_N, replicates, seed):
        for blocks, matrix_UKK in zip(sampled, matrices, strict=True):
            summed = counts_RU @ matrix_UKK.reshape(len(matrix_UKK), -1)
            blocks.append(rates(summed.reshape(-1, K, K + 1)))
    p_values = paired_test(*matrices, permutations=replicates, seed=seed)
    figures: dict[str, Any] = {"difference": {}}
    for name in AVERAGES:
        own_R, others_R = (np.concatenate([block[name] for block in blocks]) for blocks in sampled)
        figures[name] = estimate(others_R)
        if name in p_values:
            gap = estimate(own_R - others_R)
            figures["difference"][name] = gap and gap | {"p_value": p_values[name]}
    return figures


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


def difference_test(
    accuracy_U: Floats, groups_U: Ints, *, permutations: int, seed: int
) -> float | None:
    """Return the p-value that accuracy differs between groups of units by chance alone.

    `accuracy_U` is that of the images of each unit, and `groups_U` are numbers of groups, 0 or
    more. Each unit weighs one, however many images it has: where units of one group have more of
    them, as at different scanners, a test that counts images finds differences that are not there.
    The statistic is the sum over groups of units times the squared distance of the group's mean
    from that of all. Null hypothesis: the group of a unit has nothing to do with its accuracy. Then
    any other dealing of the units to groups of the same sizes is as likely, so `permutations` of
    them are drawn, and p is the share with a statistic as large as the one seen, that one included
    (Fisher 1935; Phipson and Smyth 2010): never below 1 / (permutations + 1). None where there is
    one group only.
    """
    sizes_G = np.unique(groups_U, return_counts=True)[1]
    if len(sizes_G) < 2:
        return None
    starts_G = np.concatenate([[0], np.cumsum(sizes_G)[:-1]])
    mean = accuracy_U.mean()

    def statistics_of(order_RU: Ints) -> Floats:
        sums_RG = np.add.reduceat(accuracy_U[order_RU], starts_G, axis=1)
        squares_RG = sizes_G * np.square(sums_RG / sizes_G - mean)
        summed_R: Floats = squares_RG.sum(axis=1)
        return summed_R

    U = len(groups_U)
    seen = statistics_of(groups_U.argsort(kind="stable")[None])[0]
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2)))
    as_large, size = 1, max(1, _BLOCK // U)
    for start in range(0, permutations, size):
        R = min(size, permutations - start)
        order_RU = rng.permuted(np.tile(np.arange(U), (R, 1)), axis=1)
        as_large += int((statistics_of(order_RU) >= seen - 1e-9).sum())
    return as_large / (permutations + 1)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for there being several (Holm 1979); None stays, and is no test.

    The chance that any true null hypothesis has one of at most 0.05 is then at most 0.05.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected
