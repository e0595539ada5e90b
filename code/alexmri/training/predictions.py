"""What a model said about every test image, as a CSV that gives back the very same numbers."""

import csv
import io
from pathlib import Path

import numpy as np

from alexmri.evaluation.metrics import Predictions
from alexmri.files import write_atomically

PREDICTIONS = "predictions.csv"
# Before the class names, so that no class is taken for another column.
PROBABILITY = "p_"


def predictions_text(predictions: Predictions, folds: tuple[int, ...] | None = None) -> str:
    """Return the CSV: path, subject, label, fold (where given), predicted, a column per class.

    Probabilities are calibrated, and written so that reading gives the same float64.
    """
    classes = predictions.classes
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    fold_column = ["fold"] if folds else []
    probability_columns = [PROBABILITY + name for name in classes]
    writer.writerow(["path", "subject", "label", *fold_column, "predicted", *probability_columns])
    best_N = predictions.probabilities_NK.argmax(axis=1)
    for i, path in enumerate(predictions.paths):
        writer.writerow(
            [
                path,
                predictions.subjects_N[i] if predictions.subjects_N else "",
                classes[predictions.labels_N[i]],
                *([folds[i]] if folds else []),
                classes[best_N[i]],
                *map(repr, predictions.probabilities_NK[i].tolist()),
            ]
        )
    return text.getvalue()


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write `predictions` to `path` in one piece."""
    write_atomically(path, predictions_text(predictions))


def read_predictions(path: Path) -> Predictions:
    """Return what `write_predictions` wrote; ValueError or KeyError where it is something else."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name.startswith(PROBABILITY)]
        rows = list(reader)
    classes = tuple(name.removeprefix(PROBABILITY) for name in columns)
    subjects = tuple(row["subject"] for row in rows)
    return Predictions(
        classes=classes,
        labels_N=np.array([classes.index(row["label"]) for row in rows], dtype=np.int64),
        probabilities_NK=np.array([[float(row[name]) for name in columns] for row in rows]),
        subjects_N=subjects if all(subjects) else None,
        paths=tuple(row["path"] for row in rows),
    )
