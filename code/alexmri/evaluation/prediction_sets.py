"""How often prediction sets hold the true class, how large they are, and what referring buys."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.evaluation.predictions import Floats, Ints, Predictions, by_subject
from alexmri.evaluation.rates import ratio
from alexmri.evaluation.resampling import estimate, resamples, units_of
from alexmri.model.conformal import Conformal

# Shares of the cases that are answered, those with the highest probability first.
ANSWERED = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def measure_sets(
    predictions: Predictions, conformal: Conformal, *, seed: int = 0, replicates: int = 1000
) -> dict[str, Any]:
    """Return what evaluation.json says under `prediction_sets`.

    `slices` is of single slices, of which each subject has the same weight, and `subjects` of the
    means of a subject's slices (None where subjects are unknown). Every figure is {"value",
    "ci95"}, by resampling subjects where they are known: `coverage`, the share of sets with the
    true class; `size`, classes in a set; `referred`, the share of sets that do not hold exactly
    one class; `accuracy_answered`, of the others (None without any). `risk_coverage` is the
    accuracy if only the likeliest share of the cases is answered (El-Yaniv and Wiener 2010).
    """
    people = by_subject(predictions)
    people_sets_SK = conformal.subject_sets(people.probabilities_NK) if people else None
    measured_people = None
    if people is not None and people_sets_SK is not None:
        measured_people = _measured(people, people_sets_SK, seed, replicates)
    sets_NK = conformal.sets(predictions.probabilities_NK)
    return {
        **conformal.model_dump(mode="json"),
        "slices": _measured(predictions, sets_NK, seed, replicates),
        "subjects": measured_people,
    }


def _measured(
    predictions: Predictions, sets_NK: NDArray[np.bool_], seed: int, replicates: int
) -> dict[str, Any]:
    labels_N, probabilities_NK = predictions.labels_N, predictions.probabilities_NK
    units_N = units_of(predictions.subjects_N, len(labels_N))
    counts_RU = np.concatenate(list(resamples(units_N, replicates, seed)))
    every_N = np.ones(len(labels_N))

    def share(above_N: NDArray[Any], below_N: NDArray[Any] = every_N) -> dict[str, Any] | None:
        above_U, below_U = (_by_unit(each_N, units_N) for each_N in (above_N, below_N))
        return estimate(ratio(counts_RU @ above_U, counts_RU @ below_U))

    covered_N = np.take_along_axis(sets_NK, labels_N[:, None], axis=1)[:, 0]
    answered_N = sets_NK.sum(axis=1) == 1
    correct_N = probabilities_NK.argmax(axis=1) == labels_N
    order_N = np.argsort(-probabilities_NK.max(axis=1), kind="stable")
    weights_N = 1 / np.bincount(units_N)[units_N]
    reached_N = np.cumsum(weights_N[order_N]) / weights_N.sum()
    curve = []
    for wanted in ANSWERED:
        first_N = np.zeros(len(labels_N), dtype=bool)
        first_N[order_N[: int(np.searchsorted(reached_N, wanted - 1e-9)) + 1]] = True
        curve.append({"answered": wanted, "accuracy": share(correct_N & first_N, first_N)})
    return {
        "cases": len(np.unique(units_N)),
        "coverage": share(covered_N),
        "size": share(sets_NK.sum(axis=1)),
        "referred": share(~answered_N),
        "accuracy_answered": share(covered_N & answered_N, answered_N),
        "risk_coverage": curve,
    }


def _by_unit(values_N: NDArray[Any], units_N: Ints) -> Floats:
    """Return the mean of each unit's values: each subject weighs the same."""
    means_U: Floats = np.bincount(units_N, weights=values_N) / np.bincount(units_N)
    return means_U
