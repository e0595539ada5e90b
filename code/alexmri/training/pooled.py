"""What the folds of a cross-validation say together: every image judged by a model not shown it."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexmri.data.groups_table import Column
from alexmri.data.split import classes_of_enough
from alexmri.errors import UserError
from alexmri.evaluation.metrics import find_negative_class, measure
from alexmri.evaluation.predictions import Predictions, pool, restrict
from alexmri.evaluation.report import write_measured
from alexmri.evaluation.subgroups import measure_subgroups
from alexmri.files import require_json_object, write_json
from alexmri.settings import Settings
from alexmri.training.predictions_csv import PREDICTIONS, read_predictions, write_predictions

# What is told of every fold, with mean and standard deviation over the folds; where it stands in
# what `measure` returned.
PER_FOLD = {
    "accuracy": ("accuracy",),
    "macro_f1": ("macro_f1",),
    "balanced_accuracy": ("balanced_accuracy",),
    "demented_auc_by_subject": ("subject_level", "demented", "auc"),
}
# What is told without the classes that have too few people for the folds.
WITHOUT = ("images", "subjects", "accuracy", "macro_f1", "balanced_accuracy", "auc", "baselines")

# What is read of every fold: file -> the keys it must have.
READ = {
    "evaluation.json": ("protocol", "leak_probe", "test", "best_epoch"),
    "audit.json": ("warnings",),
    "run.json": ("started", "training_seconds", "total_seconds"),
    "model/model.json": ("temperature", "data", "architecture", "code"),
}


def pool_folds(
    output: Path, folds: int, settings: Settings, subgroups: Sequence[Column] = ()
) -> dict[str, Any]:
    """Measure what the finished folds in `output` predicted; write it all and return the figures.

    Only what the folds left is read, so the result is a function of that and of `subgroups`, the
    columns to measure subgroups by.
    """
    # matplotlib: seconds that no training waits for.
    from alexmri.evaluation.plots import measured_plots

    folders = [output / f"fold-{number}" for number in range(1, folds + 1)]
    parts = [read_predictions(folder / PREDICTIONS) for folder in folders]
    evaluations, audits, runs, models = (
        [_read(folder / name, keys) for folder in folders] for name, keys in READ.items()
    )
    predictions = pool(parts)
    negative_class = find_negative_class(predictions.classes, settings.negative_class)
    measured = measure(predictions, negative_class=negative_class, seed=settings.seed)
    per_fold = [
        _row(number, evaluation, model["temperature"])
        for number, (evaluation, model) in enumerate(zip(evaluations, models, strict=True), start=1)
    ]
    protocols = [each["protocol"] for each in evaluations]
    shared = [protocol["subjects_shared"] for protocol in protocols]
    between = [protocol["subjects_between"] or {} for protocol in protocols]
    evaluation = {
        "schema": "alexmri.evaluation/1",
        "protocol": {
            **protocols[0],
            "folds": folds,
            # The most in any fold.
            "subjects_shared": None if None in shared else max(shared),
            "subjects_between": {
                key: max(fold.get(key, 0) for fold in between) for key in between[0]
            }
            or None,
        },
        "test": measured,
        "validation": None,
        "leak_probe": evaluations[0]["leak_probe"] | _one_nn(evaluations[0], measured),
        "folds": per_fold,
        "over_folds": {
            name: mean_and_deviation([row[name] for row in per_fold]) for name in PER_FOLD
        },
        "without_small_classes": without_small_classes(
            predictions, folds, negative_class, settings.seed
        ),
        "subgroups": measure_subgroups(
            predictions, subgroups, negative_class=negative_class, seed=settings.seed
        )
        if subgroups
        else None,
    }
    fold_of = [number for number, part in enumerate(parts, start=1) for _ in part.paths]
    write_predictions(output / PREDICTIONS, predictions, fold_of)
    run_facts = {key: value for key, value in runs[0].items() if not key.endswith("_seconds")} | {
        key: round(sum(run[key] for run in runs), 1)
        for key in ("training_seconds", "total_seconds")
    }
    write_measured(
        output,
        evaluation,
        {
            **evaluation,
            "title": f"AlexNet on brain-MRI slices, {folds}-fold cross-validation",
            "generated": runs[0]["started"],
            "audit": audits[0],
            "history": [],
            "best_epoch": None,
            "predictions": predictions,
            "prediction_sets": None,  # each fold has its own, and so with
            "robustness": None,
            "top_losses": [],
            "data": {
                "classes": list(predictions.classes),
                "counts": {"test": _images_by_class(predictions)},
                "subjects": _subjects_by_split(predictions),
                "fingerprint": models[0]["data"]["fingerprint"],
                # What is true of every fold, not what one of them happens to lack.
                "warnings": [
                    warning
                    for warning in audits[0]["warnings"]
                    if all(warning in audit["warnings"] for audit in audits)
                ],
            },
            "settings": settings.model_dump(mode="json", exclude={"checkpoint_s3"}),
            "model": {
                "parameters": models[0]["architecture"]["parameters"],
                "temperature": statistics.fmean(model["temperature"] for model in models),
            },
            "run": run_facts,
            "code": models[0]["code"],
            "plots": measured_plots(measured, predictions, f"test parts of {folds} folds"),
        },
    )
    write_json(output / "run.json", run_facts)
    return evaluation


def without_small_classes(
    predictions: Predictions, folds: int, negative_class: str | None, seed: int
) -> dict[str, Any] | None:
    """Return the figures between the classes that every fold tests; None where all classes are.

    A class with fewer people (images, where people are unknown) than folds is missing from some of
    them, and its F1 rests on those few people.
    """
    keys = predictions.subjects_N or predictions.paths
    labels = [predictions.classes[k] for k in predictions.labels_N.tolist()]
    kept = classes_of_enough(keys, labels, folds=folds)
    if len(kept) < 2 or len(kept) == len(predictions.classes):
        return None
    measured = measure(
        restrict(predictions, kept),
        negative_class=negative_class if negative_class in kept else None,
        seed=seed,
    )
    left_out = [name for name in predictions.classes if name not in kept]
    return {"classes": kept, "left_out": left_out} | {name: measured[name] for name in WITHOUT}


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and sample standard deviation of the values that are known."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "standard_deviation": statistics.stdev(known) if len(known) > 1 else None,
    }


def value_at(measured: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """Return the value of the figure at `path` in what `measure` returned, None where undefined."""
    found: Any = measured
    for key in path:
        found = None if found is None else found[key]
    return None if found is None else float(found["value"])


def _row(number: int, evaluation: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    test = evaluation["test"]
    return {
        "fold": number,
        "images": test["images"],
        "subjects": test["subjects"],
        "best_epoch": evaluation["best_epoch"],
        "temperature": temperature,
        **{name: value_at(test, path) for name, path in PER_FOLD.items()},
    }


def _one_nn(evaluation: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the 1-NN baseline's accuracy over all folds, for the probe of the same protocol."""
    found = value_at(measured, ("baselines", "nearest_neighbour", "accuracy"))
    return {} if found is None else {evaluation["protocol"]["split_by"]: found}


def _images_by_class(predictions: Predictions) -> dict[str, int]:
    counted = Counter(predictions.labels_N.tolist())
    return {name: counted[k] for k, name in enumerate(predictions.classes)}


def _subjects_by_split(predictions: Predictions) -> dict[str, dict[str, int]] | None:
    if predictions.subjects_N is None:
        return None
    pairs = set(zip(predictions.subjects_N, predictions.labels_N.tolist(), strict=True))
    counted = Counter(k for _, k in pairs)
    subjects = {name: counted[k] for k, name in enumerate(predictions.classes)}
    return {"test": subjects, "all": subjects}


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    content = require_json_object(path)
    missing = [key for key in keys if key not in content]
    if missing:
        raise UserError(
            f"{path} is damaged: it has no '{missing[0]}'; remove its fold and run the same command"
            " again"
        )
    return content
