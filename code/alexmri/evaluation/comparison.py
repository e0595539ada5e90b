"""Compare two models on the same images: paired differences with intervals and p-values."""

from typing import Any

import numpy as np

from alexmri.evaluation.predictions import Predictions, by_subject
from alexmri.evaluation.rates import rates, unit_matrices
from alexmri.evaluation.resampling import estimate, paired_test, resamples, units_of

COMPARED = ("accuracy", "macro_f1")


def compare(
    one: Predictions, other: Predictions, *, seed: int = 0, replicates: int = 1000
) -> dict[str, Any]:
    """Return how far `one` is above `other`, two models' predictions of the same N images.

    "difference" has accuracy and macro F1 as {"value", "ci95", "p_value"}: in -1..1, above 0 where
    `one` is better, by the resamples and the paired test of `measure`, which draw whole subjects
    where these are known. "accuracy" and "macro_f1" are the other model's own figures. In
    "subject_level" stands the same for subjects, None where these are unknown.

    Raises:
        ValueError: other images, in another order, or other classes.
    """
    if (one.classes, one.paths) != (other.classes, other.paths):
        raise ValueError("Expected two models' predictions of the same images and classes.")
    compared = _compare(one, other, seed, replicates)
    subjects, others = by_subject(one), by_subject(other)
    by_person = _compare(subjects, others, seed, replicates) if subjects and others else None
    return {**compared, "subject_level": by_person}


def _compare(one: Predictions, other: Predictions, seed: int, replicates: int) -> dict[str, Any]:
    units_N, K = units_of(one.subjects_N, len(one.labels_N)), len(one.classes)
    matrices = [
        unit_matrices(one.labels_N, each.probabilities_NK.argmax(axis=1), units_N, K)
        for each in (one, other)
    ]
    sampled: list[list[dict[str, Any]]] = [[], []]
    for counts_RU in resamples(units_N, replicates, seed):
        for blocks, matrix_UKK in zip(sampled, matrices, strict=True):
            summed = counts_RU @ matrix_UKK.reshape(len(matrix_UKK), -1)
            blocks.append(rates(summed.reshape(-1, K, K + 1)))
    p_values = paired_test(*matrices, permutations=replicates, seed=seed)
    figures: dict[str, Any] = {"difference": {}}
    for name in COMPARED:
        own_R, others_R = (np.concatenate([block[name] for block in blocks]) for blocks in sampled)
        gap = estimate(own_R - others_R)
        figures["difference"][name] = gap and gap | {"p_value": p_values[name]}
        figures[name] = estimate(others_R)
    return figures
