"""What a model said about every test image, as a CSV that gives back the very same numbers."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexmri.errors import UserError
from alexmri.evaluation.predictions import OTHER, Floats, Predictions
from alexmri.files import write_atomically

PREDICTIONS = "predictions.csv"
NEAREST = "nearest_neighbour"
# Before the class names, so that no class is taken for another column.
CALIBRATED, UNCALIBRATED = "p_", "uncalibrated_"
# Spreadsheets compute what begins like this, also in the wide forms of East Asian keyboards. A
# quote before it makes it text (OWASP, "CSV injection"); quotes that stood there count too, so that
# reading gives back every name.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def write_predictions(
    path: Path, predictions: Predictions, folds: Sequence[int] | None = None
) -> None:
    """Write a row per image in the order of their paths, in one piece.

    The columns are path, subject, label, fold (with `folds`), predicted, the calibrated probability
    of each class, and where known the answer of the 1-NN baseline and each probability before
    calibration.
    Numbers are written so that reading gives the same float64.
    """
    classes = predictions.classes
    probabilities = [(CALIBRATED, predictions.probabilities_NK)]
    if predictions.uncalibrated_NK is not None:
        probabilities.append((UNCALIBRATED, predictions.uncalibrated_NK))
    known = predictions.nearest_N is not None
    lines = _Lines()
    # With "\r" in what ends a line, names that hold one are quoted.
    writer = csv.writer(lines, lineterminator="\r\n")
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
                _as_text(predictions.paths[row]),
                _as_text(predictions.subjects_N[row]) if predictions.subjects_N else "",
                _as_text(classes[predictions.labels_N[row]]),
                *([folds[row]] if folds else []),
                _as_text(classes[answers_N[row]]),
                *([] if not known else [""] if nearest == OTHER else [_as_text(classes[nearest])]),
                *(
                    repr(value)
                    for _, values_NK in probabilities
                    for value in values_NK[row].tolist()
                ),
            ]
        )
    write_atomically(path, "".join(lines))


class _Lines(list[str]):
    """The lines that a csv.writer writes, each ended by a line feed alone."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def read_predictions(path: Path) -> Predictions:
    """Return what `write_predictions` wrote; UserError where it is something else."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            columns = reader.fieldnames or ()
            return _parsed(columns, list(reader))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (csv.Error, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold predictions as alexmri writes them: {error}"
        ) from None


def _parsed(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> Predictions:
    classes = tuple(
        name.removeprefix(CALIBRATED) for name in columns if name.startswith(CALIBRATED)
    )

    def probabilities(prefix: str) -> Floats:
        return np.array([[float(row[prefix + name]) for name in classes] for row in rows])

    number = {name: k for k, name in enumerate(classes)}
    subjects = tuple(_as_name(row["subject"]) for row in rows)
    uncalibrated = classes[0] if classes else ""
    return Predictions(
        classes=classes,
        labels_N=np.array([number[_as_name(row["label"])] for row in rows], dtype=np.int64),
        probabilities_NK=probabilities(CALIBRATED),
        subjects_N=subjects if all(subjects) else None,
        paths=tuple(_as_name(row["path"]) for row in rows),
        uncalibrated_NK=(
            probabilities(UNCALIBRATED) if UNCALIBRATED + uncalibrated in columns else None
        ),
        nearest_N=(
            np.array([number.get(_as_name(row[NEAREST]), OTHER) for row in rows], dtype=np.int64)
            if NEAREST in columns
            else None
        ),
    )


def _as_text(name: str) -> str:
    """Return `name` as a cell that no spreadsheet takes for a formula."""
    return f"'{name}" if FORMULA.match(name) else name


def _as_name(cell: str) -> str:
    """Return the name that `_as_text` made a cell of."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
