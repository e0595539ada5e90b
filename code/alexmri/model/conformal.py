"""Prediction sets that hold the true class as often as promised, and when to refer instead.

Split conformal prediction (Vovk, Gammerman and Shafer 2005) with the score 1 - p(true class)
(Sadinle, Lei and Wasserman 2019), calibrated on subjects who are used for nothing else. Slices of
one subject are alike, so each subject weighs one, however many slices there are: the hierarchical
conformal quantile of Lee, Barber and Willett (2023, arXiv:2306.06342). The promise is about a case
of the same population, on average over cases: not about each class, and not about other scanners.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from alexmri.errors import UserError
from alexmri.settings import cases_needed

Share = Annotated[float, Field(gt=0, lt=1)]
# A set holds every class whose score is at most this.
Threshold = Annotated[float, Field(ge=0, le=1)]


class Conformal(BaseModel):
    """What a model folder keeps of the calibration; `conformal` in model.json.

    `cases` says how many subjects (slices, where subjects are unknown) calibrated it, and `unit`
    what a case is. `subject_threshold` is for the mean of a subject's slices; None where subjects
    are unknown.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    coverage: Share
    unit: str
    cases: Annotated[int, Field(ge=1)]
    threshold: Threshold
    subject_threshold: Threshold | None

    def sets(self, probabilities_NK: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which classes (N, K) are in the sets of N slices."""
        return 1 - probabilities_NK <= self.threshold

    def subject_sets(self, probabilities_NK: NDArray[np.float64]) -> NDArray[np.bool_] | None:
        """Return the same for N subjects, by the means of their slices; None where not known."""
        if self.subject_threshold is None:
            return None
        return 1 - probabilities_NK <= self.subject_threshold


def calibrate(
    probabilities_NK: NDArray[np.float64],
    labels_N: NDArray[np.int64],
    subjects_N: Sequence[str] | None,
    *,
    coverage: float,
    unit: str,
) -> Conformal:
    """Return the thresholds by which sets of new cases hold the true class in `coverage` of them.

    Raises:
        UserError: too few subjects (or slices, where subjects are unknown) for this coverage.
    """
    cases = subjects_N if subjects_N is not None else [str(i) for i in range(len(labels_N))]
    names_S, case_N = np.unique(np.array(cases), return_inverse=True)
    if len(names_S) < cases_needed(coverage):
        raise UserError(
            f"coverage {coverage:g} needs at least {cases_needed(coverage)}"
            f" {'subjects' if subjects_N is not None else 'slices'} to calibrate on, and there are"
            f" {len(names_S)}; add data, or ask for less coverage"
        )
    slices_S = np.bincount(case_N)
    scores_N = 1 - np.take_along_axis(probabilities_NK, labels_N[:, None], axis=1)[:, 0]
    threshold = _quantile(scores_N, 1 / slices_S[case_N], coverage)
    subject_threshold = None
    if subjects_N is not None:
        sums_SK = np.zeros((len(names_S), probabilities_NK.shape[1]))
        np.add.at(sums_SK, case_N, probabilities_NK)
        labels_S = np.zeros(len(names_S), dtype=np.int64)
        labels_S[case_N] = labels_N  # of several labels, the last: such subjects are rare
        mean_S = np.take_along_axis(sums_SK, labels_S[:, None], axis=1)[:, 0] / slices_S
        subject_threshold = _quantile(1 - mean_S, np.ones(len(names_S)), coverage)
    return Conformal(
        coverage=coverage,
        unit=unit,
        cases=len(names_S),
        threshold=threshold,
        subject_threshold=subject_threshold,
    )


def _quantile(
    scores_N: NDArray[np.float64], weights_N: NDArray[np.float64], coverage: float
) -> float:
    """Return the weighted quantile of the scores, beside one case of weight 1 that is above all."""
    order_N = np.argsort(scores_N, kind="stable")
    below_N = np.cumsum(weights_N[order_N]) / (weights_N.sum() + 1)
    # The sums of weights are rounded: 0.9 itself shall do for 0.9.
    first = int(np.searchsorted(below_N, coverage - 1e-9))
    return float(np.clip(scores_N[order_N[min(first, len(order_N) - 1)]], 0, 1))
