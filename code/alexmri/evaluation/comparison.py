"""Compare two answers to the same images: paired differences with intervals and p-values."""

from typing import Any

import numpy as np

from alexmri.evaluation.predictions import Floats, Ints, Predictions, by_subject
from alexmri.evaluation.rates import rates, unit_matrices
from alexmri.evaluation.resampling import estimate, paired_test, resamples, units_of

AVERAGES = ("accuracy", "balanced_accuracy", "macro_f1")


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
