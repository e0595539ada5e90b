"""How well a model does on subgroups of subjects, and whether these differ beyond chance."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alexmri.data.groups_table import SEVERAL, Column
from alexmri.evaluation.metrics import measure
from alexmri.evaluation.predictions import Floats, Ints, Predictions, at_rows
from alexmri.evaluation.resampling import difference_test, holm, units_of

# A subgroup of fewer subjects has figures, and no interval: resampling so few says too little.
MIN_SUBJECTS = 10
# A quantity is cut into so many parts with equally many subjects.
QUANTILES = 3
MISSING = "missing"


def measure_subgroups(
    predictions: Predictions,
    columns: Sequence[Column],
    *,
    negative_class: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Return what evaluation.json says under `subgroups`: a row for each column.

    Every subject is in one subgroup of a column, with all of its images; where subjects are unknown
    every image is. A subject without a value is in "missing", one whose images have several in
    "several values". Of a quantity, such as an age, the mean of a subject's values counts. It is
    cut at the column's bounds, or else at those values of subjects that are nearest to the
    quantiles 1/3 and 2/3. A bound belongs to the part above it.

    Of each subgroup there are the number of images and subjects, and as {"value", "ci95"} the
    accuracy and macro F1 of images and `auc_demented`, of subjects where they are known. `small`
    says why there are no intervals: fewer than MIN_SUBJECTS subjects or than two classes. There
    is one test for each column, `difference_test` of the subjects' accuracy, without those in
    "missing" and "several values"; `p_value_holm` is corrected for the number of tests.
    """
    units_N = units_of(predictions.subjects_N, len(predictions.labels_N))
    right_N = predictions.probabilities_NK.argmax(axis=1) == predictions.labels_N
    accuracy_U: Floats = np.bincount(units_N, weights=right_N) / np.bincount(units_N)
    rows, p_values = [], []
    for column in columns:
        names, groups_U, bounds = _divide(column, predictions.paths, units_N)
        compared_U = groups_U < len(names) - 2
        p_values.append(
            difference_test(
                accuracy_U[compared_U], groups_U[compared_U], permutations=replicates, seed=seed
            )
        )
        subgroups = [
            {"name": name}
            | _measured(
                at_rows(predictions, np.flatnonzero(groups_U[units_N] == number)),
                negative_class,
                seed,
                replicates,
            )
            for number, name in enumerate(names)
            if (groups_U == number).any()
        ]
        rows.append({"column": column.name, "bounds": bounds, "subgroups": subgroups})
    tested = zip(rows, p_values, holm(p_values), strict=True)
    return {
        "min_subjects": MIN_SUBJECTS,
        "resampled_by": "image" if predictions.subjects_N is None else "subject",
        "columns": [row | {"p_value": p, "p_value_holm": holms} for row, p, holms in tested],
    }


def _divide(
    column: Column, paths: Sequence[str], units_N: Ints
) -> tuple[list[str], Ints, list[float] | None]:
    """Return names, the number of each unit's (U,), and where numbers were cut (None: nowhere).

    The last two names are those of units with several values and without any.
    """
    values: list[list[str]] = [[] for _ in range(int(units_N.max()) + 1)]
    for path, unit in zip(paths, units_N.tolist(), strict=True):
        if (text := column.values.get(path)) is not None:
            values[unit].append(text)
    if column.is_quantity:
        mean_U = np.array(
            [np.mean([float(text) for text in own]) if own else np.nan for own in values]
        )
        bounds_B = np.array(column.bounds) if column.bounds else _quantiles(mean_U)
        names = _parts(bounds_B)
        groups_U = np.searchsorted(bounds_B, mean_U, side="right")
        groups_U[np.isnan(mean_U)] = len(names) + 1
        return [*names, SEVERAL, MISSING], groups_U, bounds_B.tolist()
    names = sorted({text for own in values for text in own})
    number = {name: i for i, name in enumerate(names)}
    groups = [
        number[own[0]] if len(set(own)) == 1 else len(names) + (0 if own else 1) for own in values
    ]
    return [*names, SEVERAL, MISSING], np.array(groups), None


def _quantiles(mean_U: Floats) -> Floats:
    shares = np.arange(1, QUANTILES) / QUANTILES
    known_U = mean_U[~np.isnan(mean_U)]
    if not len(known_U):
        return known_U
    bounds_B = np.unique(np.quantile(known_U, shares, method="nearest"))
    # The lowest value has nothing below it.
    above_B: Floats = bounds_B[bounds_B > known_U.min()]
    return above_B


def _parts(bounds_B: Floats) -> list[str]:
    """Return the names of the parts between bounds."""
    texts = [f"{bound:.15g}" for bound in bounds_B]
    if not texts:
        return ["all"]
    between = [f"{low} to under {high}" for low, high in zip(texts, texts[1:], strict=False)]
    return [f"under {texts[0]}", *between, f"{texts[-1]} or more"]


def _measured(
    predictions: Predictions, negative_class: str | None, seed: int, replicates: int
) -> dict[str, Any]:
    measured = measure(predictions, negative_class=negative_class, seed=seed, replicates=replicates)
    of_subjects = measured if predictions.subjects_N is None else measured["subject_level"]
    demented = of_subjects and of_subjects["demented"]
    figures = {
        **{name: measured[name] for name in ("accuracy", "macro_f1")},
        "auc_demented": demented and demented["auc"],
    }
    small = _small(predictions, measured["subjects"])
    if small:
        figures = {name: each and each | {"ci95": None} for name, each in figures.items()}
    return {
        "images": measured["images"],
        "subjects": measured["subjects"],
        "small": small,
        **figures,
    }


def _small(predictions: Predictions, subjects: int | None) -> str | None:
    """Say what a subgroup has too few of, None where it is large enough for intervals."""
    things = "images" if subjects is None else "subjects"
    if (subjects or len(predictions.labels_N)) < MIN_SUBJECTS:
        return f"fewer than {MIN_SUBJECTS} {things}"
    return "fewer than 2 classes" if len(np.unique(predictions.labels_N)) < 2 else None
