"""The figures of one finished run of demo data stay the same numbers, whatever computes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexmri.evaluation.metrics import measure
from alexmri.evaluation.predictions import Predictions
from alexmri.training.results import write_results

from .report_facts import facts

STORED = Path(__file__).parent / "data" / "stored_run.json"


def stored_run() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(STORED.read_text())
    return content


def predictions_of(stored: dict[str, Any]) -> Predictions:
    return Predictions(
        classes=tuple(stored["classes"]),
        labels_N=np.array(stored["labels"]),
        probabilities_NK=np.array(stored["probabilities"]),
        subjects_N=tuple(stored["subjects"]),
        paths=tuple(stored["paths"]),
        uncalibrated_NK=np.array(stored["uncalibrated"]),
        nearest_N=np.array(stored["nearest"]),
    )


def write(folder: Path) -> None:
    """Write what the run left, from its predictions alone."""
    stored = stored_run()
    predictions = predictions_of(stored["predictions"])
    test = measure(predictions, negative_class=stored["negative_class"], seed=stored["seed"])
    given = {name: stored[name] for name in ("protocol", "leak_probe", "best_epoch")}
    folder.mkdir(exist_ok=True)
    write_results(folder, facts(test=test, validation=None, **given), {}, {"started": "then"})


def leaves(value: Any, place: str = "") -> dict[str, Any]:
    """Return every number, text and null below `value`, by where it stands."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = dict(enumerate(value)).items()
    else:
        return {place: value}
    return {
        name: leaf for key, part in parts for name, leaf in leaves(part, f"{place}/{key}").items()
    }


@pytest.mark.parametrize("name", ["evaluation.json", "statistics.json"])
def test_figures_of_a_stored_run_are_the_stored_numbers(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    found = leaves(json.loads((tmp_path / name).read_text()))
    expected = leaves(stored_run()[name])
    assert len(expected) > 30
    assert expected.keys() <= found.keys()
    for place, value in expected.items():
        # Other processors add in another order.
        wanted = pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
        assert found[place] == wanted, place
