"""Prediction sets keep their promise about new subjects, and are refused where none can be made."""

import json
from pathlib import Path

import numpy as np
import pytest

from alexmri.data.dataset import load_dataset
from alexmri.data.split import CALIBRATION, Split, carve_calibration
from alexmri.errors import UserError
from alexmri.evaluation.prediction_sets import measure_sets
from alexmri.evaluation.predictions import Predictions
from alexmri.model.conformal import Conformal, calibrate
from alexmri.settings import Layer, cases_needed, resolve
from alexmri.terminal import PlainTerminal

from .command_line import train
from .conftest import ImageMaker

CLASSES = ("a", "b", "c")


def population(
    subjects: int, seed: int, slices: int = 24
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Slices of made-up subjects: those of one are alike, and some have many more than others."""
    rng = np.random.default_rng(seed)
    labels, logits, names = [], [], []
    for subject in range(subjects):
        label = int(rng.integers(3))
        own = rng.normal(0, 1.2, 3) + 1.5 * np.eye(3)[label]
        for _ in range(int(rng.integers(1, slices))):
            labels.append(label)
            logits.append(own + rng.normal(0, 0.4, 3))
            names.append(f"s{subject}")
    scores = np.exp(np.array(logits))
    return scores / scores.sum(axis=1, keepdims=True), np.array(labels), tuple(names)


@pytest.mark.parametrize("seed", range(3))
def test_nine_in_ten_sets_of_new_subjects_hold_the_true_class(seed: int) -> None:
    probabilities, labels, names = population(600, seed)
    new = np.array([int(name[1:]) >= 300 for name in names])
    old_names = tuple(name for name, is_new in zip(names, new, strict=True) if not is_new)
    new_names = tuple(name for name, is_new in zip(names, new, strict=True) if is_new)
    conformal = calibrate(probabilities[~new], labels[~new], old_names, coverage=0.9, unit="x")
    assert conformal.cases == 300
    predictions = Predictions(
        classes=CLASSES,
        labels_N=labels[new],
        probabilities_NK=probabilities[new],
        subjects_N=new_names,
        paths=tuple(map(str, range(int(new.sum())))),
    )
    measured = measure_sets(predictions, conformal, replicates=200)
    for level in ("slices", "subjects"):
        assert 0.87 <= measured[level]["coverage"]["value"] <= 0.93, level
        assert 1 < measured[level]["size"]["value"] < 3
    curve = [row["accuracy"]["value"] for row in measured["slices"]["risk_coverage"]]
    assert curve[-1] > curve[0]
    accuracy = measured["slices"]["accuracy_answered"]["value"]
    assert accuracy > curve[0]


def test_single_slices_are_calibrated_as_by_mapie() -> None:
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Known(ClassifierMixin, BaseEstimator):
        """A fitted classifier whose probabilities are its inputs."""

        classes_ = np.arange(3)

        def fit(self, X: np.ndarray, y: np.ndarray) -> "Known":
            return self

        def predict_proba(self, X: np.ndarray) -> np.ndarray:
            return X

        def predict(self, X: np.ndarray) -> np.ndarray:
            return X.argmax(axis=1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    probabilities, labels, _ = population(200, 7, slices=2)
    fresh, _, _ = population(300, 8, slices=2)
    for coverage in (0.5, 0.8, 0.9):
        oracle = SplitConformalClassifier(
            Known(), confidence_level=coverage, conformity_score="lac", prefit=True
        )
        oracle.conformalize(probabilities, labels)
        _, expected = oracle.predict_set(fresh)
        ours = calibrate(probabilities, labels, None, coverage=coverage, unit="one slice")
        np.testing.assert_array_equal(ours.sets(fresh), expected[:, :, 0])


def test_a_subject_with_many_slices_weighs_no_more_than_one_with_few() -> None:
    # Nine subjects, eight of them sure, one of whom has a hundred slices that are all wrong.
    sure, wrong = [0.98, 0.01, 0.01], [0.05, 0.9, 0.05]
    probabilities = np.array([sure] * 8 + [wrong] * 100)
    names = tuple([f"s{i}" for i in range(8)] + ["many"] * 100)
    labels = np.zeros(108, dtype=np.int64)
    conformal = calibrate(probabilities, labels, names, coverage=0.8, unit="x")
    assert conformal.threshold == pytest.approx(0.02)
    assert conformal.subject_threshold == pytest.approx(0.02)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_too_few_subjects_cannot_promise_a_coverage(coverage: float, needed: int) -> None:
    assert cases_needed(coverage) == needed
    probabilities = np.full((needed, 2), 0.5)
    labels = np.zeros(needed, dtype=np.int64)
    names = tuple(map(str, range(needed)))
    assert calibrate(probabilities, labels, names, coverage=coverage, unit="x").cases == needed
    if needed > 1:
        with pytest.raises(UserError, match=f"coverage {coverage:g} needs at least {needed}"):
            calibrate(probabilities[1:], labels[1:], names[1:], coverage=coverage, unit="x")


def test_what_is_carve_calibration_leaves_validation_and_keeps_subjects_whole() -> None:
    keys = [f"s{i // 3}" for i in range(60)]
    labels = ["a" if i < 30 else "b" for i in range(60)]
    split = Split(("validation",) * 48 + ("train",) * 12, "subject", ())
    found = carve_calibration(split, keys, labels, at_least=4, seed=0)
    assert found.assigned[48:] == ("train",) * 12
    parts = {
        name: {key for key, part in zip(keys, found.assigned, strict=True) if part == name}
        for name in ("validation", CALIBRATION)
    }
    assert not parts["validation"] & parts[CALIBRATION]
    assert len(parts[CALIBRATION]) == len(parts["validation"]) == 8
    assert carve_calibration(split, keys, labels, at_least=4, seed=0) == found
    with pytest.raises(UserError, match="coverage needs 9 or more people in half"):
        carve_calibration(split, keys, labels, at_least=9, seed=0)


def test_a_threshold_of_one_holds_every_class() -> None:
    conformal = Conformal(coverage=0.9, unit="x", cases=9, threshold=1.0, subject_threshold=None)
    assert conformal.sets(np.array([[1.0, 0.0]])).all()
    assert conformal.subject_sets(np.array([[1.0, 0.0]])) is None


@pytest.mark.slow
def test_a_training_with_coverage_leaves_sets_everywhere(demo: Path, tmp_path: Path) -> None:
    options = ("--split-by", "subject", "--split-ratios", "0.5/0.3/0.2", "--coverage", "0.6")
    done = train(demo, tmp_path / "out", *options)
    assert "2 of 4 people of validation only calibrate the prediction sets" in done.stdout
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    sets = evaluation["prediction_sets"]
    assert sets["coverage"] == 0.6
    assert sets["unit"].startswith("one slice of a new person")
    assert 0 <= sets["slices"]["coverage"]["value"] <= 1
    assert sets["subjects"]["cases"] >= 1
    model = json.loads((tmp_path / "out" / "model" / "model.json").read_text())
    assert model["conformal"]["threshold"] == sets["threshold"]
    assert CALIBRATION in model["data"]["counts"]
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    aside = {image["subject"] for image in split["images"] if image["split"] == CALIBRATION}
    others = {image["subject"] for image in split["images"] if image["split"] != CALIBRATION}
    assert len(aside) >= 2
    assert not aside & others
    assert "Prediction sets" in (tmp_path / "out" / "report.html").read_text()
    assert "## Prediction sets" in (tmp_path / "out" / "model" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_coverage_that_the_data_cannot_promise_is_refused_before_the_training(
    demo: Path, tmp_path: Path
) -> None:
    refused = train(
        demo, tmp_path / "out", "--split-by", "subject", "--coverage", "0.99", check=False
    )
    assert refused.returncode == 2
    assert "coverage needs 99 or more" in refused.stderr
    assert not (tmp_path / "out" / "model" / "model.json").exists()


def test_people_are_counted_before_the_training_also_in_a_split_by_slice(
    make_images: ImageMaker,
) -> None:
    names = [
        f"{label}/{i} ({person}).png" for label in "AB" for person in (1, 2) for i in range(40)
    ]
    settings = resolve([Layer("test", {"coverage": 0.85})]).settings
    with pytest.raises(UserError, match="coverage 0.85 needs 6 or more people .* shows 4"):
        load_dataset({"train": make_images(*names)}, settings, workers=1, terminal=PlainTerminal())


@pytest.mark.parametrize("value", ["0", "1", "90"])
def test_coverage_is_a_share(value: str) -> None:
    assert resolve([]).settings.coverage is None
    with pytest.raises(UserError, match="'coverage' is"):
        resolve([Layer("test", {"coverage": value})])
