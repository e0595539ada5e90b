"""The temperature is found, never harms, and the gap that is left is counted as Guo et al. do."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import sklearn.metrics

from alexmri.evaluation.calibration import (
    ECE_BINS,
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)
from alexmri.model.predictor import softmax


def drawn(
    N: int, temperature: float, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return scores and labels drawn so that dividing the scores by `temperature` is right."""
    rng = np.random.default_rng(seed)
    logits_NK = rng.normal(scale=3.0, size=(N, 4))
    edges_NK = softmax(logits_NK, temperature).cumsum(axis=1)
    return logits_NK, (rng.random((N, 1)) > edges_NK[:, :3]).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_known_temperature_is_recovered(temperature: float) -> None:
    assert fit_temperature(*drawn(8000, temperature)) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize("seed", range(8))
def test_likelihood_is_never_worse_than_without(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits_NK, labels_N = rng.normal(scale=5, size=(9, 3)), rng.integers(0, 3, 9)
    temperature = fit_temperature(logits_NK, labels_N)
    assert negative_log_likelihood(logits_NK, labels_N, temperature) <= negative_log_likelihood(
        logits_NK, labels_N, 1.0
    )


def test_no_grid_point_is_better() -> None:
    logits_NK, labels_N = drawn(300, 1.7)
    best = negative_log_likelihood(logits_NK, labels_N, fit_temperature(logits_NK, labels_N))
    assert (
        best
        <= min(
            negative_log_likelihood(logits_NK, labels_N, t)
            for t in np.geomspace(*TEMPERATURES, 400)
        )
        + 1e-9
    )


def test_half_precision_scores_are_fitted_in_double_precision() -> None:
    logits_NK, labels_N = drawn(500, 2.0)
    coarse_NK = logits_NK.astype(np.float16)
    assert fit_temperature(coarse_NK, labels_N) == fit_temperature(
        coarse_NK.astype(np.float64), labels_N
    )


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e4])
def test_separable_scores_stay_within_bounds(scale: float) -> None:
    labels_N = np.arange(20) % 4
    temperature = fit_temperature(scale * np.eye(4)[labels_N], labels_N)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    assert np.isfinite(softmax(scale * np.eye(4)[labels_N], temperature)).all()


def test_a_perfect_validation_split_makes_no_answer_surer() -> None:
    labels_N = np.arange(200) % 4
    assert fit_temperature(3 * np.eye(4)[labels_N], labels_N) == 1.0


def test_already_certain_and_right_is_left_alone() -> None:
    labels_N = np.arange(8) % 2
    assert fit_temperature(1e5 * np.eye(2)[labels_N], labels_N) == 1.0


def test_always_sure_and_wrong_is_cooled_to_the_upper_bound() -> None:
    labels_N = np.arange(8) % 2
    hottest = fit_temperature(50 * np.eye(2)[1 - labels_N], labels_N)
    assert hottest == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_likelihood_equals_scikit_learns_and_needs_no_clip() -> None:
    logits_NK, labels_N = drawn(50, 1.0)
    for temperature in (1.0, 2.0):
        expected = sklearn.metrics.log_loss(labels_N, softmax(logits_NK, temperature))
        assert negative_log_likelihood(logits_NK, labels_N, temperature) == pytest.approx(expected)
    assert negative_log_likelihood([[1000.0, 0.0]], [1]) == 1000.0


def test_softmax_equals_scipy_and_survives_large_scores() -> None:
    logits_NK = np.random.default_rng(0).normal(scale=4, size=(5, 3))
    expected_NK = scipy.special.softmax(logits_NK / 1.3, axis=1)
    np.testing.assert_allclose(softmax(logits_NK, 1.3), expected_NK, rtol=1e-12)
    assert softmax([[1e6, -1e6]], 0.05).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "N > 0"),
        (np.zeros((2, 3)), np.zeros(3, dtype=int), "N > 0"),
        (np.array([[np.nan, 0.0]]), np.zeros(1, dtype=int), "finite"),
    ],
)
def test_scores_that_cannot_be_fitted_are_refused(
    logits: npt.ArrayLike, labels: npt.ArrayLike, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_bins_hold_every_image_and_close_on_the_right() -> None:
    confidence_N = np.array([0.0, 1 / 15, 0.5, 0.52, 1.0])
    bins = reliability_bins(confidence_N, np.array([True, False, True, False, True]))
    assert len(bins) == ECE_BINS
    assert [row["count"] for row in bins if row["count"]] == [2, 2, 1]
    assert bins[0]["count"] == 2  # 0 and exactly 1/15
    assert bins[7]["count"] == 2  # 7/15 = 0.467 < 0.5, 0.52 <= 0.533 = 8/15
    assert bins[1] == {
        "lower": pytest.approx(1 / 15),
        "upper": pytest.approx(2 / 15),
        "confidence": None,
        "accuracy": None,
        "count": 0,
    }


def test_calibration_error_is_the_mean_gap_weighted_by_images() -> None:
    # Three images at 0.9 of which one is right (gap 0.567), one at 0.6 that is right (gap 0.4).
    bins = reliability_bins(np.array([0.9, 0.9, 0.9, 0.6]), np.array([True, False, False, True]))
    assert expected_calibration_error(bins) == pytest.approx((3 * (0.9 - 1 / 3) + 0.4) / 4)


def test_fitting_lowers_the_calibration_error() -> None:
    logits_NK, labels_N = drawn(4000, 2.5)

    def error(temperature: float) -> float:
        p_NK = softmax(logits_NK, temperature)
        right_N = p_NK.argmax(axis=1) == labels_N
        return expected_calibration_error(reliability_bins(p_NK.max(axis=1), right_N))

    assert error(fit_temperature(logits_NK, labels_N)) < 0.03 < 0.1 < error(1.0)
