"""Data from elsewhere: overlap with the model's own, moved calibration, unusual images."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

from alexmri.data.split import deal
from alexmri.evaluation.evaluate import evaluate_folder
from alexmri.evaluation.external import find_overlap, measure_external, recalibrate
from alexmri.evaluation.interpretation import describe_external
from alexmri.evaluation.metrics import measure
from alexmri.evaluation.predictions import Predictions
from alexmri.model.alexnet import build
from alexmri.model.bundle import load_bundle
from alexmri.model.ood import OutOfDistribution
from alexmri.model.predictor import Predictor
from alexmri.terminal import PlainTerminal
from alexmri.training.ood_fit import fit_ood

from .bundles import save
from .command_line import run
from .conftest import ImageMaker

pytestmark = pytest.mark.slow

PEOPLE, SLICES, K = 60, 10, 3
STORED = 1.5
OWN = {"ece": 0.03, "log_loss": {"value": 0.4, "ci95": None}, "brier": {"value": 0.2, "ci95": None}}


def moved(factor: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits and labels that are `factor` times as sure as labels drawn from them allow."""
    rng = np.random.default_rng(seed)
    honest_NK = rng.normal(0, 2, (PEOPLE * SLICES, K))
    p_NK = scipy_softmax(honest_NK, axis=1)
    labels_N = (p_NK.cumsum(axis=1) < rng.random((len(p_NK), 1))).sum(axis=1)
    return (factor * honest_NK).astype(np.float32), labels_N


def answers(logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> Predictions:
    count = len(labels_N)
    return Predictions(
        classes=("A", "B", "C"),
        labels_N=labels_N,
        probabilities_NK=scipy_softmax(logits_NK.astype(np.float64) / STORED, axis=1),
        subjects_N=tuple(f"p{i // SLICES:02}" for i in range(count)),
        paths=tuple(f"{i}.png" for i in range(count)),
        uncalibrated_NK=scipy_softmax(logits_NK.astype(np.float64), axis=1),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    network = build(classes=3, image_size=32, channels=1, dropout=0.5, seed=0)
    folder = tmp_path_factory.mktemp("model") / "model"
    facts = {"metrics": {"test": OWN, "validation": None}}
    return load_bundle(save(folder, network, ("A", "B", "C"), facts=facts, temperature=STORED))


def external(bundle: Any, predictions: Predictions, logits_NK: Any, ood_N: Any = None) -> Any:
    overlap = find_overlap(bundle, ["0"], None, same_data=False)
    figures = measure(predictions, replicates=50)
    return measure_external(bundle, predictions, logits_NK, ood_N, overlap, figures, replicates=50)


def temperature_of(logits_NK: Any, labels_N: Any) -> float:
    def loss(temperature: float) -> float:
        log_p_NK = log_softmax(logits_NK.astype(np.float64) / temperature, axis=1)
        return -float(log_p_NK[np.arange(len(labels_N)), labels_N].mean())

    return float(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x)


def scores(p_NK: Any, labels_N: Any) -> dict[str, float]:
    """Return ECE over 15 bins, Brier score and log loss, as plain numpy has them."""
    top_N, right_N = p_NK.max(axis=1), p_NK.argmax(axis=1) == labels_N
    bin_N = np.digitize(top_N, np.linspace(0, 1, 16), right=True)
    ece = sum(
        (bin_N == b).mean() * abs(top_N[bin_N == b].mean() - right_N[bin_N == b].mean())
        for b in np.unique(bin_N)
    )
    rows = np.arange(len(labels_N))
    brier = np.square(p_NK - np.eye(K)[labels_N]).sum(axis=1).mean()
    return {"ece": ece, "brier": brier, "log_loss": -np.log(p_NK[rows, labels_N]).mean()}


def test_a_moved_temperature_comes_back(bundle: Any) -> None:
    logits_NK, labels_N = moved(4.0)
    found = external(bundle, answers(logits_NK, labels_N), logits_NK)["calibration"]
    assert found["temperature"]["stored"] == STORED
    assert found["temperature"]["fitted_here"] == pytest.approx(4.0, rel=0.15)
    assert found["temperature"]["fitted_here"] == pytest.approx(
        temperature_of(logits_NK, labels_N), rel=1e-3
    )
    assert (found["own_split"], found["own"]) == ("test", OWN)
    assert found["original"]["ece"] > 0.1
    assert found["recalibrated"]["ece"] < 0.5 * found["original"]["ece"]
    low, high = found["recalibrated"]["log_loss"]["ci95"]
    assert low < found["recalibrated"]["log_loss"]["value"] < high


def test_where_nothing_moved_the_stored_temperature_fits(bundle: Any) -> None:
    logits_NK, labels_N = moved(STORED)
    found = external(bundle, answers(logits_NK, labels_N), logits_NK)["calibration"]
    assert found["temperature"]["fitted_here"] == pytest.approx(STORED, rel=0.15)
    assert found["recalibrated"]["log_loss"]["value"] == pytest.approx(
        found["original"]["log_loss"]["value"], rel=0.02
    )


def test_every_figure_is_that_of_plain_numpy(bundle: Any) -> None:
    logits_NK, labels_N = moved(4.0, seed=1)
    predictions = answers(logits_NK, labels_N)
    found = external(bundle, predictions, logits_NK)["calibration"]
    assert predictions.subjects_N
    parts = deal(predictions.subjects_N, list(map(str, labels_N)), folds=5, seed=0)
    part_N = np.array([parts[subject] for subject in predictions.subjects_N])
    assert set(part_N) == {1, 2, 3, 4, 5}
    recalibrated_NK = np.empty((len(labels_N), K))
    for part in range(1, 6):
        own = part_N == part
        temperature = temperature_of(logits_NK[~own], labels_N[~own])
        recalibrated_NK[own] = scipy_softmax(logits_NK[own] / temperature, axis=1)
    for key, p_NK in (
        ("original", predictions.probabilities_NK),
        ("recalibrated", recalibrated_NK),
    ):
        for name, expected in scores(p_NK, labels_N).items():
            value = found[key][name]
            value = value if name == "ece" else value["value"]
            assert value == pytest.approx(expected, abs=2e-4), (key, name)


def test_nobody_is_recalibrated_by_their_own_labels() -> None:
    logits_NK, labels_N = moved(4.0)
    subjects = answers(logits_NK, labels_N).subjects_N
    assert subjects
    before_NK = recalibrate(logits_NK, labels_N, subjects, stored=1.0, seed=0)
    # Another answer of the same class set: the dealing stays, only what is fitted may change.
    other_N = labels_N.copy()
    own = slice(0, SLICES)
    other_N[own] = np.roll(labels_N[own], 1)
    assert (other_N != labels_N).any()
    after_NK = recalibrate(logits_NK, other_N, subjects, stored=1.0, seed=0)
    assert np.array_equal(after_NK[own], before_NK[own])
    assert not np.array_equal(after_NK, before_NK)


def test_right_answers_alone_fit_no_temperature(bundle: Any) -> None:
    logits_NK, _ = moved(STORED)
    labels_N = logits_NK.argmax(axis=1)
    all_right = external(bundle, answers(logits_NK, labels_N), logits_NK)["calibration"]
    assert all_right["temperature"]["fitted_here"] is None
    value = all_right["original"]["log_loss"]["value"]
    assert all_right["recalibrated"]["log_loss"]["value"] == pytest.approx(value)
    # One person has a wrong answer. The part of that person is fitted by the others, all right.
    labels_N[0] = (labels_N[0] + 1) % K
    subjects = answers(logits_NK, labels_N).subjects_N
    assert subjects
    given_NK = recalibrate(logits_NK, labels_N, subjects, stored=STORED, seed=0)
    stored_NK = scipy_softmax(logits_NK / STORED, axis=1)
    assert given_NK[:SLICES] == pytest.approx(stored_NK[:SLICES])
    assert not np.allclose(given_NK, stored_NK)


def test_too_few_subjects_fit_no_temperature(bundle: Any) -> None:
    logits_NK, labels_N = moved(4.0)
    few = slice(0, 9 * SLICES)
    found = external(bundle, answers(logits_NK[few], labels_N[few]), logits_NK[few])
    assert found["calibration"]["temperature"]["fitted_here"] is None
    assert found["calibration"]["recalibrated"] is None
    assert "too few people" in describe_external(found)[1]


def test_unusual_images_are_counted_beside_what_is_expected(bundle: Any) -> None:
    logits_NK, labels_N = moved(1.0)
    ood_N = np.zeros(len(labels_N))
    ood_N[: 6 * SLICES] = 1.0  # six people of sixty
    ood_N[-1] = 0.99  # not above
    fitted = OutOfDistribution(*(np.zeros(1, np.float32),) * 4, np.arange(544, dtype=np.float32))
    bundle = replace(bundle, ood=fitted)
    found = external(bundle, answers(logits_NK, labels_N), logits_NK, ood_N)
    share = found["unusual"]["share"]
    assert share["value"] == pytest.approx(0.1)
    # Whole people are drawn: the interval is that of 60 cases, not of 600 images.
    assert share["ci95"][1] - share["ci95"][0] > 0.1
    # 545 places among 544 validation slices, of which 6 are above.
    assert found["unusual"]["above"] == 0.99
    assert found["unusual"]["expected"] == pytest.approx(6 / 545, abs=1e-6)
    assert external(bundle, answers(logits_NK, labels_N), logits_NK)["unusual"] is None


def sha256(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def model(folder: Path, **changes: Any) -> Path:
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    return save(folder, network, ("A", "B"), **changes)


@pytest.fixture
def root(make_images: ImageMaker) -> Path:
    return make_images(
        *(f"{label}/{i} ({s}).png" for label in "AB" for s in (1, 2) for i in (1, 2))
    )


def measured(bundle: Path, root: Path) -> Any:
    facts = evaluate_folder(Predictor.load(bundle), root, workers=1, terminal=PlainTerminal())
    return facts["external"]


def test_images_of_the_training_are_counted_with_their_subjects(root: Path, tmp_path: Path) -> None:
    taken = sha256(root / "A" / "1 (1).png", root / "A" / "2 (1).png", root / "B" / "1 (2).png")
    bundle = model(tmp_path / "model", training_images=taken, held_out_images=["0" * 64])
    found = measured(bundle, root)
    assert found["is_external"] is False
    assert (found["images"], found["images_in_training"], found["images_held_out"]) == (8, 3, 0)
    assert found["subjects_in_training"] == 2
    assert describe_external(found)[0] == (
        "NOT external: 3 of the 8 images were in the training (2 people). The figures are not those"
        " of a test on other data."
    )


def test_a_part_of_the_own_test_split_is_not_external(root: Path, tmp_path: Path) -> None:
    own = sha256(root / "A" / "1 (1).png")
    bundle = model(tmp_path / "model", training_images=["0" * 64], held_out_images=own)
    found = measured(bundle, root)
    assert (found["is_external"], found["images_held_out"]) == (False, 1)
    assert "1 of the 8 images are in the validation or test split" in describe_external(found)[0]


def test_other_images_are_external(root: Path, tmp_path: Path) -> None:
    bundle = model(tmp_path / "model", training_images=["0" * 64], held_out_images=["1" * 64])
    found = measured(bundle, root)
    assert (found["is_external"], found["subjects_in_training"]) == (True, 0)
    assert describe_external(found)[0].startswith("External: none of the 8 images")


@pytest.mark.parametrize("listed", [{}, {"training_images": ["0" * 64]}])
def test_what_a_model_does_not_list_is_unknown(root: Path, tmp_path: Path, listed: Any) -> None:
    found = measured(model(tmp_path / "model", **listed), root)
    assert (found["is_external"], found["images_held_out"]) == (None, None)
    assert "not known whether these images are external" in describe_external(found)[0]


def test_evaluate_tells_of_unusual_images_as_a_server_does(root: Path, tmp_path: Path) -> None:
    plain = Predictor.load(model(tmp_path / "plain"))
    pixels = np.stack([plain.pixels(path) for path in sorted(root.rglob("*.png"))])
    features_NF = plain.inference.run(pixels)[1]
    ood = replace(fit_ood(features_NF, features_NF), distances_V=np.zeros(1, np.float32))
    bundle = model(tmp_path / "model", ood=ood)
    written = tmp_path / "evaluation.json"
    done = run("evaluate", bundle, root, "--json", written)
    unusual = json.loads(written.read_text())["external"]["unusual"]
    answered = Predictor.load(bundle).predict(pixels).ood_percentile_N
    assert answered is not None
    assert unusual["share"]["value"] == np.mean(answered > 0.99) == 1
    assert "Unusual images: 1.000" in done.stdout
