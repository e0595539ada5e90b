"""What a model said about every test image, as a CSV that gives back the very same numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexmri.evaluation.predictions import OTHER, Floats, Predictions
from alexmri.files import write_atomically

PREDICTIONS = "predictions.csv"
NEAREST = "nearest_neighbour"
# Before the class names, so that no class is taken for another column.
CALIBRATED, UNCALIBRATED = "p_", "uncalibrated_"


def write_predictions(
    path: Path, predictions: Predictions, folds: Sequence[int] | None = None
) -> None:
    """Write a row per image in the order of their paths, in one piece.

    The columns are path, subject, label, fold (with `folds`), predicted, the calibrated probability
    of each class, and where known the look-up's answer and each probability before calibration.
    Numbers are written so that reading gives the same float64.
    """
    classes = predictions.classes
    probabilities = [(CALIBRATED, predictions.probabilities_NK)]
    if predictions.uncalibrated_NK is not None:
        probabilities.append((UNCALIBRATED, predictions.uncalibrated_NK))
    known = predictions.nearest_N is not None
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("path", "subject", "label", *(["fold"] if folds else []), "predicted"),
            *([NEAREST] if known else []),
            *(prefix + name for prefix, _ in probabilities for name in classes),
        ]
    )
    answers_N = predictions.probabilities_NK.argmax(axis=1)
    for row in sorted(range(len(answers_N)), key=predictions.paths.__getitem__):
        nearest = OTHER if predictions.nearest_N is None else int(predictions.nearest_N[row])
        writer.writerow(
            [
                predictions.paths[row],
                predictions.subjects_N[row] if predictions.subjects_N else "",
                classes[predictions.labels_N[row]],
                *([folds[row]] if folds else []),
                classes[answers_N[row]],
                *([] if not known else [""] if nearest == OTHER else [classes[nearest]]),
                *(
                    repr(value)
                    for _, values_NK in probabilities
                    for value in values_NK[row].tolist()
                ),
            ]
        )
    write_atomically(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Return what `write_predictions` wrote; ValueError or KeyError where it is something else."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        rows = list(reader)
    classes = tuple(
        name.removeprefix(CALIBRATED) for name in columns if name.startswith(CALIBRATED)
    )

    def probabilities(prefix: str) -> Floats:
        return np.array([[float(row[prefix + name]) for name in classes] for row in rows])

    number = {name: k for k, name in enumerate(classes)}
    subjects = tuple(row["subject"] for row in rows)
    uncalibrated = classes[0] if classes else ""
    return Predictions(
        classes=classes,
        labels_N=np.array([number[row["label"]] for row in rows], dtype=np.int64),
        probabilities_NK=probabilities(CALIBRATED),
        subjects_N=subjects if all(subjects) else None,
        paths=tuple(row["path"] for row in rows),
        uncalibrated_NK=(
            probabilities(UNCALIBRATED) if UNCALIBRATED + uncalibrated in columns else None
        ),
        nearest_N=(
            np.array([number.get(row[NEAREST], OTHER) for row in rows], dtype=np.int64)
            if NEAREST in columns
            else None
        ),
    )
