"""Make probabilities honest: fit the temperature, measure the gap that is left."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alexmri.model.predictor import log_softmax

ECE_BINS = 15  # as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)  # outside, the fit follows a handful of images, not the network


def negative_log_likelihood(
    logits_NK: npt.ArrayLike, labels_N: npt.ArrayLike, temperature: float = 1.0
) -> float:
    """Return the mean cross-entropy of the labels, 0 or more; unlike `log_loss` without a clip."""
    log_p_NK = log_softmax(logits_NK, temperature)
    return -float(np.take_along_axis(log_p_NK, np.asarray(labels_N)[:, None], axis=1).mean())


def fit_temperature(logits_NK: npt.ArrayLike, labels_N: npt.ArrayLike) -> float:
    """Return the temperature in 0.05..20 that minimises the negative log likelihood of the labels.

    Temperature scaling (Guo et al. 2017): dividing all scores by one number changes no answer,
    only how sure it sounds. Fit it on validation images: on images the network was trained on it
    comes out too low, and so it does where validation shares people with training. Returns 1
    where no temperature is better, so the likelihood is never worse than without, and where every
    answer is right: then the likelihood only grows as the temperature falls, towards claims of
    certainty that a few hundred images cannot support. Raises ValueError for no images and for
    scores that are not finite.
    """
    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    labels_N = np.asarray(labels_N)
    if logits_NK.ndim != 2 or labels_N.shape != logits_NK.shape[:1] or labels_N.size == 0:
        raise ValueError(
            f"Expected scores (N, K) and labels (N,) with N > 0, got {logits_NK.shape} "
            f"and {labels_N.shape}."
        )
    if not np.isfinite(logits_NK).all():
        raise ValueError("Scores must be finite: the network has diverged.")

    if (logits_NK.argmax(axis=1) == labels_N).all():
        return 1.0

    from scipy.optimize import minimize_scalar  # half a second that no training step waits for

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits_NK, labels_N, math.exp(log_temperature))

    # The loss is convex in 1/T, so it has one valley in log T and a bounded search finds it.
    low, high = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if loss(found.x) < loss(0.0) else 1.0


def reliability_bins(
    confidence_N: npt.NDArray[np.float64], correct_N: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return one row per equal bin (lower, upper] of the top probability, in 0..1.

    Rows hold lower, upper, count, and the means "confidence" and "accuracy", None in empty bins.
    """
    bins_N = np.clip(np.ceil(confidence_N * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    rows = []
    for b in range(ECE_BINS):
        inside_N = bins_N == b
        count = int(inside_N.sum())
        rows.append(
            {
                "lower": b / ECE_BINS,
                "upper": (b + 1) / ECE_BINS,
                "confidence": float(confidence_N[inside_N].mean()) if count else None,
                "accuracy": float(correct_N[inside_N].mean()) if count else None,
                "count": count,
            }
        )
    return rows


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean gap, in 0..1, between confidence and accuracy (ECE, Guo et al. 2017)."""
    filled = [row for row in bins if row["count"]]
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in filled]
    return float(sum(gaps) / sum(row["count"] for row in filled))
