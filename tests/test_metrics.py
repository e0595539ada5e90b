"""The figures equal scikit-learn's, and the intervals mean what they say."""

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from alexmri.evaluation import metrics, rates, resampling
from alexmri.evaluation.predictions import Predictions

CLASSES = ("Mild", "Moderate", "None", "VeryMild", "Fifth", "Sixth")


def predictions(labels: Any, probabilities: Any, subjects: list[str] | None = None) -> Predictions:
    probabilities_NK = np.asarray(probabilities, dtype=np.float64)
    return Predictions(
        classes=CLASSES[: probabilities_NK.shape[1]],
        labels_N=np.asarray(labels, dtype=np.int64),
        probabilities_NK=probabilities_NK,
        subjects_N=None if subjects is None else tuple(subjects),
        paths=tuple(f"{n}.png" for n in range(len(probabilities_NK))),
    )


def random_predictions(
    N: int, K: int = 4, *, seed: int = 0, people: int | None = None, skill: float = 1.5
) -> Predictions:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, K, N)
    labels_N[:K] = np.arange(K)  # every class occurs
    subjects = None
    if people is not None:
        subjects_N = np.arange(N) % people
        labels_N = labels_N[subjects_N]  # a person has one label
        subjects = [f"p{s}" for s in subjects_N]
    logits_NK = rng.normal(size=(N, K))
    logits_NK[np.arange(N), labels_N] += skill
    # Two decimals make ties, which the AUC must count as half.
    scores_NK = np.round(np.exp(logits_NK), 2) + 0.01
    return predictions(labels_N, scores_NK / scores_NK.sum(axis=1, keepdims=True), subjects)


def as_predicted(labels_N: Any, predicted_N: Any, K: int) -> Predictions:
    return predictions(labels_N, np.eye(K)[predicted_N])


def width(estimate: dict[str, Any]) -> float:
    low, high = estimate["ci95"]
    return float(high - low)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda K: st.tuples(
            st.just(K),
            st.lists(
                st.tuples(st.integers(0, K - 1), st.integers(0, K - 1)), min_size=1, max_size=30
            ),
        )
    )
)
def test_rates_equal_scikit_learn_also_for_missing_classes(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    K, pairs = case
    labels_N, predicted_N = np.array(pairs).T
    confusion_KK = rates.confusion_matrix(labels_N, predicted_N, K)
    assert (confusion_KK == sk.confusion_matrix(labels_N, predicted_N, labels=range(K))).all()
    macro_f1 = sk.f1_score(labels_N, predicted_N, average="macro")
    assert rates.macro_f1(confusion_KK) == pytest.approx(macro_f1)

    measured = metrics.measure(as_predicted(labels_N, predicted_N, K), replicates=5)
    assert measured["accuracy"]["value"] == sk.accuracy_score(labels_N, predicted_N)
    assert measured["macro_f1"]["value"] == pytest.approx(macro_f1)
    # By default scikit-learn writes 0 where a rate is undefined; here it is asked to say so.
    expected = sk.precision_recall_fscore_support(
        labels_N, predicted_N, labels=range(K), zero_division=np.nan
    )
    for k, name in enumerate(CLASSES[:K]):
        found = measured["per_class"][name]
        assert found["images"] == expected[3][k]
        for rate, values_K in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            if np.isnan(values_K[k]):
                assert found[rate] is None
            else:
                assert found[rate]["value"] == pytest.approx(values_K[k])
    present = [r["recall"]["value"] for r in measured["per_class"].values() if r["images"]]
    assert measured["balanced_accuracy"]["value"] == pytest.approx(np.mean(present))
    json.dumps(measured, allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_probability_figures_equal_scikit_learn(seed: int) -> None:
    p = random_predictions(120, seed=seed)
    measured = metrics.measure(p, replicates=5)
    labels_N, probabilities_NK = p.labels_N, p.probabilities_NK
    assert measured["log_loss"]["value"] == pytest.approx(sk.log_loss(labels_N, probabilities_NK))
    assert measured["brier"]["value"] == pytest.approx(
        sk.brier_score_loss(labels_N, probabilities_NK)
    )
    assert measured["auc"]["macro"]["value"] == pytest.approx(
        sk.roc_auc_score(labels_N, probabilities_NK, multi_class="ovr", average="macro")
    )
    for k, name in enumerate(p.classes):
        assert measured["auc"]["per_class"][name]["value"] == pytest.approx(
            sk.roc_auc_score(labels_N == k, probabilities_NK[:, k])
        )
    assert measured["balanced_accuracy"]["value"] == pytest.approx(
        sk.balanced_accuracy_score(labels_N, probabilities_NK.argmax(axis=1))
    )


def test_weighted_auc_equals_scikit_learn_with_sample_weights() -> None:
    """The interval is as good as the weighting: weights must act as repeated images do."""
    p = random_predictions(80, K=3)
    weights_RN = np.random.default_rng(1).integers(0, 4, size=(6, 80)).astype(np.float64)
    auc_RK = rates.auc(weights_RN, np.eye(3)[p.labels_N], p.probabilities_NK)
    for weights_N, auc_K in zip(weights_RN, auc_RK, strict=True):
        for k in range(3):
            assert auc_K[k] == pytest.approx(
                sk.roc_auc_score(p.labels_N == k, p.probabilities_NK[:, k], sample_weight=weights_N)
            )


def test_certain_and_wrong_stays_finite() -> None:
    measured = metrics.measure(as_predicted(np.array([0, 1]), np.array([1, 1]), 2))
    assert 17 < measured["log_loss"]["value"] < 19  # half of -log(2.2e-16)


def test_class_absent_everywhere_is_null_and_valid_json() -> None:
    p = predictions([0, 0, 1, 1], [[0.6, 0.3, 0.1], [0.4, 0.5, 0.1]] * 2)
    measured = json.loads(json.dumps(metrics.measure(p), allow_nan=False))
    assert measured["per_class"]["None"] == {
        "precision": None,
        "recall": None,
        "f1": None,
        "images": 0,
    }
    assert measured["auc"]["per_class"]["None"] is None
    assert measured["auc"]["macro"]["value"] == pytest.approx(0.5)


def test_one_class_in_the_split_has_no_auc_at_all() -> None:
    measured = metrics.measure(predictions([1, 1], [[0.4, 0.6], [0.7, 0.3]]))
    assert measured["auc"] == {"macro": None, "per_class": {"Mild": None, "Moderate": None}}
    assert measured["majority_class"] == {"class": "Moderate", "accuracy": 1.0}


@pytest.mark.parametrize("subjects", [None, ["a"]])
def test_single_unit_has_a_value_but_no_interval(subjects: list[str] | None) -> None:
    measured = metrics.measure(predictions([0], [[0.9, 0.1]], subjects))
    assert measured["accuracy"] == {"value": 1.0, "ci95": None}
    assert measured["weighted"]["accuracy"]["standard_deviation"] is None
    json.dumps(measured, allow_nan=False)


def test_image_interval_agrees_with_binomial_theory() -> None:
    labels_N = np.zeros(400, dtype=np.int64)
    predicted_N = (np.arange(400) >= 300).astype(np.int64)
    interval = metrics.measure(as_predicted(labels_N, predicted_N, 2), replicates=4000)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval["ci95"] == pytest.approx([0.75 - half, 0.75 + half], abs=0.006)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for draw in range(100):
        predicted_N = (rng.random(200) < 0.3).astype(np.int64)
        p = as_predicted(np.zeros(200, dtype=np.int64), predicted_N, 2)
        low, high = metrics.measure(p, seed=draw, replicates=200)["accuracy"]["ci95"]
        covered += low <= 0.7 <= high
    assert 87 <= covered <= 100


def test_interval_is_wider_when_a_persons_images_are_all_alike() -> None:
    """30 people of 32 like slices are 30 observations: sqrt(32) times the width."""
    right_S = np.random.default_rng(3).random(30) < 0.6
    predicted_N = np.repeat(~right_S, 32).astype(np.int64)
    labels_N, probabilities_NK = np.zeros(960, dtype=np.int64), np.eye(2)[predicted_N]
    people = [f"p{s}" for s in np.repeat(np.arange(30), 32)]
    by_image = metrics.measure(predictions(labels_N, probabilities_NK))
    by_person = metrics.measure(predictions(labels_N, probabilities_NK, people))
    assert (by_image["resampled_by"], by_person["resampled_by"]) == ("image", "subject")
    assert by_image["accuracy"]["value"] == by_person["accuracy"]["value"]
    ratio = width(by_person["accuracy"]) / width(by_image["accuracy"])
    assert ratio == pytest.approx(np.sqrt(32), rel=0.15)


def test_same_seed_same_block_other_seed_other_intervals() -> None:
    p = random_predictions(60, people=12)
    assert metrics.measure(p, seed=1) == metrics.measure(p, seed=1)
    one, two = metrics.measure(p, seed=1), metrics.measure(p, seed=2)
    assert one["brier"]["value"] == two["brier"]["value"]
    assert one["brier"]["ci95"] != two["brier"]["ci95"]


def test_large_splits_go_in_blocks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    p = random_predictions(50)
    whole = metrics.measure(p, replicates=64)
    monkeypatch.setattr(resampling, "_BLOCK", 50 * 10)
    in_blocks = metrics.measure(p, replicates=64)
    assert in_blocks["macro_f1"]["ci95"] == pytest.approx(whole["macro_f1"]["ci95"])


def test_person_is_judged_by_their_mean_probability() -> None:
    # a: two slices narrowly wrong, one surely right: the mean is right, a majority vote is not.
    p = predictions(
        [0, 0, 0, 1, 1],
        [[0.45, 0.55], [0.45, 0.55], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]],
        ["a", "a", "a", "b", "b"],
    )
    people = metrics.measure(p)["subject_level"]
    assert (people["subjects"], people["left_out"]) == (2, 0)
    assert people["accuracy"]["value"] == 1.0
    assert people["confusion_matrix"]["counts"] == [[1, 0], [0, 1]]


def test_person_with_two_labels_is_left_out_and_counted() -> None:
    rows = [[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]]
    measured = metrics.measure(predictions([0, 1, 1], rows, ["both", "both", "b"]))
    assert measured["subjects"] == 2
    assert (measured["subject_level"]["subjects"], measured["subject_level"]["left_out"]) == (1, 1)
    only_mixed = metrics.measure(predictions([0, 1], rows[:2], ["both", "both"]))
    assert only_mixed["subject_level"] is None
    assert metrics.measure(predictions([0, 1], rows[:2]))["subject_level"] is None


def test_statistics_have_sagemakers_names_and_scikit_learns_values() -> None:
    p = random_predictions(300, people=30)
    predicted_N = p.probabilities_NK.argmax(axis=1)
    measured = metrics.measure(p)
    block = metrics.statistics(measured)["multiclass_classification_metrics"]
    matrix = block.pop("confusion_matrix")
    assert matrix["Mild"]["Moderate"] == measured["confusion_matrix"]["counts"][0][1]
    names = ["accuracy", "weighted_recall", "weighted_precision"]
    names += ["weighted_f0_5", "weighted_f1", "weighted_f2"]
    assert set(block) == set(names) | {f"{n}_best_constant_classifier" for n in names}

    majority = p.classes.index(measured["majority_class"]["class"])
    for suffix, answer_N in (
        ("", predicted_N),
        ("_best_constant_classifier", np.full_like(predicted_N, majority)),
    ):
        for name, beta in (("f0_5", 0.5), ("f1", 1.0), ("f2", 2.0)):
            assert block[f"weighted_{name}{suffix}"]["value"] == pytest.approx(
                sk.fbeta_score(p.labels_N, answer_N, beta=beta, average="weighted", zero_division=0)
            )
        assert block[f"weighted_precision{suffix}"]["value"] == pytest.approx(
            sk.precision_score(p.labels_N, answer_N, average="weighted", zero_division=0)
        )
        assert block[f"weighted_recall{suffix}"]["value"] == pytest.approx(
            sk.accuracy_score(p.labels_N, answer_N)
        )
    low, high = measured["accuracy"]["ci95"]
    assert block["accuracy"]["standard_deviation"] == pytest.approx((high - low) / 3.92, rel=0.15)


def test_measuring_a_thousand_images_takes_well_under_two_seconds() -> None:
    p = random_predictions(1000, people=30)
    started = time.process_time()
    metrics.measure(p)
    assert time.process_time() - started < 2


def test_empty_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        rates.macro_f1(np.zeros((3, 3), dtype=np.int64))


@pytest.mark.parametrize(
    ("labels", "rows", "subjects", "message"),
    [
        ([], np.zeros((0, 2)), None, "N > 0"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], None, "Expected labels"),
        ([2], [[0.5, 0.5]], None, r"0\.\.1"),
        ([-1], [[0.5, 0.5]], None, r"0\.\.1"),
        ([0], [[0.5, 0.6]], None, "sum to 1"),
        ([0], [[1.5, -0.5]], None, "sum to 1"),
        ([0], [[np.nan, np.nan]], None, "sum to 1"),
        ([0], [[0.5, 0.5]], ["a", "b"], "subjects"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    labels: Any, rows: Any, subjects: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictions(labels, rows, subjects)
