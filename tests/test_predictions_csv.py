"""predictions.csv gives back what was written, and no spreadsheet computes what stands in it."""

import csv
from pathlib import Path

import numpy as np
import pytest

from alexmri.errors import UserError
from alexmri.evaluation.predictions import Predictions
from alexmri.training.predictions_csv import read_predictions, write_predictions

NAMES = (
    *("=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "\uff1d1"),
    *("'=1", "''=1", "'x", "'", "plain", "a=b", 'quo"te', "a,b", "ü"),
)


def predictions() -> Predictions:
    N = K = len(NAMES)
    probabilities_NK = np.random.default_rng(0).dirichlet(np.ones(K), N)
    return Predictions(
        classes=NAMES,
        labels_N=np.arange(N),
        probabilities_NK=probabilities_NK,
        subjects_N=NAMES,
        paths=tuple(f"{name}/1.png" for name in NAMES),
        uncalibrated_NK=probabilities_NK[::-1],
        nearest_N=np.arange(N)[::-1],
    )


def test_every_name_comes_back_and_none_is_a_formula(tmp_path: Path) -> None:
    path, written = tmp_path / "predictions.csv", predictions()
    write_predictions(path, written)
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@\t\r\n\uff1d" and cell]
    found = read_predictions(path)
    order = [found.paths.index(name) for name in written.paths]
    assert found.classes == written.classes
    assert [found.subjects_N[k] for k in order] == list(NAMES) if found.subjects_N else False
    for name in ("labels_N", "probabilities_NK", "uncalibrated_NK", "nearest_N"):
        assert np.array_equal(getattr(found, name)[order], getattr(written, name))


def test_ordinary_names_stand_as_they_are(tmp_path: Path) -> None:
    N = 2
    write_predictions(
        tmp_path / "p.csv",
        Predictions(
            classes=("Mild", "Non"),
            labels_N=np.arange(N),
            probabilities_NK=np.array([[0.25, 0.75], [1.0, 0.0]]),
            subjects_N=None,
            paths=("Mild/1.png", "Non/2.png"),
        ),
    )
    assert (tmp_path / "p.csv").read_text() == (
        "path,subject,label,predicted,p_Mild,p_Non\n"
        "Mild/1.png,,Mild,Non,0.25,0.75\nNon/2.png,,Non,Mild,1.0,0.0\n"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,subject\n",
        b"path,subject,label,p_A\nx,,A,one\n",
        b"path,subject,label,p_A\nx,,B,1\n",
        b"path,subject,label,p_A\nx\n",
        b"\xff\xfe",
        b"path,subject,label,p_A\nx,,A,nan\n",
        b'path,subject,label,p_A\n"x,,A,1\n',
    ],
)
def test_what_is_something_else_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.csv does not hold predictions"):
        read_predictions(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path / "none.csv")
