"""Two models are compared on the same images: by paired tests, and on the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexmri.evaluation.metrics import measure
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.resampling import compare
from alexmri.model.alexnet import build

from .bundles import save
from .command_line import run
from .report_facts import predictions

DEMO = ("MildDemented", "ModerateDemented", "NonDemented", "VeryMildDemented")


def other_than(one: Predictions) -> Predictions:
    """Return another model's answers on the same images: worse, as it is often sure of class 0."""
    probabilities_NK = one.probabilities_NK.copy()
    probabilities_NK[::3] = np.eye(len(one.classes))[0]
    return replace(one, probabilities_NK=probabilities_NK)


def test_difference_interval_and_p_are_those_of_a_baseline_with_the_same_answers() -> None:
    one = predictions()
    other = other_than(one)
    found = compare(one, other, replicates=200)
    as_baseline = replace(one, nearest_N=other.probabilities_NK.argmax(axis=1))
    expected = measure(as_baseline, replicates=200)["baselines"]["nearest_neighbour"]
    assert found["difference"] == expected["difference"]
    assert found["accuracy"] == expected["accuracy"]
    own, others = (measure(each, replicates=200) for each in (one, other))
    for name in ("accuracy", "macro_f1"):
        gap = found["difference"][name]
        assert gap["value"] == pytest.approx(own[name]["value"] - others[name]["value"])
        assert gap["value"] > 0
        assert gap["ci95"][0] < gap["value"] < gap["ci95"][1]
        people = found["subject_level"]["difference"][name]
        of_people = (each["subject_level"][name]["value"] for each in (own, others))
        assert people["value"] == pytest.approx(next(of_people) - next(of_people))


def test_the_same_answers_differ_by_nothing() -> None:
    found = compare(predictions(), predictions(), replicates=50)
    for level in (found, found["subject_level"]):
        for gap in level["difference"].values():
            assert gap == {"value": 0, "ci95": [0, 0], "p_value": 1}


def test_whole_people_are_drawn_where_they_are_known() -> None:
    one = predictions(people=8)
    alone = replace(one, subjects_N=None)
    known, unknown = (
        compare(each, other_than(each), replicates=500)["difference"]["macro_f1"]["ci95"]
        for each in (one, alone)
    )
    assert known[1] - known[0] > unknown[1] - unknown[0]
    assert compare(alone, alone, replicates=5)["subject_level"] is None


def test_other_images_are_refused() -> None:
    one = predictions()
    with pytest.raises(ValueError, match="same images"):
        compare(one, replace(one, paths=("y.png",) * 400))


def model(folder: Path, seed: int, classes: tuple[str, ...] = DEMO, **changes: Any) -> Path:
    size = changes.get("image_size", 32)
    network = build(classes=len(classes), image_size=size, channels=1, dropout=0.5, seed=seed)
    return save(folder, network, classes, **changes)


@pytest.mark.slow
def test_evaluate_against_another_model(demo: Path, tmp_path: Path) -> None:
    one = model(tmp_path / "one", 0)
    other = model(tmp_path / "other", 1, image_size=40, training_images=["0" * 64])
    written = tmp_path / "evaluation.json"
    done = run("evaluate", one, demo, "--against", other, "--json", written, COLUMNS="200")
    evaluation = json.loads(written.read_text())
    found = evaluation["against"]
    version = json.loads((other / "model.json").read_text())["files"]["model.safetensors"][:12]
    assert found["model"] == version
    assert (found["trained_on_these_images"], found["images_in_training"]) == (False, 0)
    gap = found["difference"]["accuracy"]
    own = evaluation["test"]["accuracy"]["value"]
    assert gap["value"] == pytest.approx(own - found["accuracy"]["value"])
    assert 0 < gap["p_value"] <= 1
    *_, slices, people = done.stdout.splitlines()
    assert slices.startswith(f"Slices, compared with model {version}: ")
    assert people.startswith(f"People, compared with model {version}: ")
    for line in (slices, people):
        assert "Difference in accuracy " in line
        assert ", in macro F1 " in line
        assert "p = " in line or "p ≤ " in line


@pytest.mark.slow
def test_models_of_other_classes_are_one_sentence(demo: Path, tmp_path: Path) -> None:
    one = model(tmp_path / "one", 0)
    other = model(tmp_path / "other", 0, ("MildDemented", "NonDemented"))
    refused = run("evaluate", one, demo, "--against", other, check=False)
    assert refused.returncode == 2
    assert "the models have different classes" in refused.stderr
    assert "MildDemented, NonDemented; compare models that were trained on" in refused.stderr
    assert "Traceback" not in refused.stderr
