"""What the folds of a cross-validation say together: every image judged by a model not shown it."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexmri.data.audit import probe_leak, warnings_of
from alexmri.data.dataset import Dataset
from alexmri.evaluation.metrics import Predictions, measure
from alexmri.evaluation.output import write_measured
from alexmri.files import write_atomically, write_json
from alexmri.settings import Settings
from alexmri.training.predictions import PREDICTIONS, predictions_text, read_predictions

# What is shown of every fold, with mean and standard deviation over the folds.
PER_FOLD = ("accuracy", "macro_f1", "balanced_accuracy")


def pool_folds(
    output: Path, folds: int, dataset: Dataset, settings: Settings, *, started: float
) -> dict[str, Any]:
    """Measure the predictions of all finished folds together, write all of it, return the figures.

    `dataset` is that of any fold; `started` is when this process began (time.monotonic).
    """
    # matplotlib: seconds that no training waits for.
    from alexmri.evaluation.plots import measured_plots

    folders = [output / f"fold-{number}" for number in range(1, folds + 1)]
    parts = [read_predictions(folder / PREDICTIONS) for folder in folders]
    predictions, fold_of = pooled(parts)
    measured = measure(predictions, seed=settings.seed)
    protocol = protocol_of(dataset, folds)
    probe = probe_leak(dataset, settings).document()
    evaluations = [_read(folder / "evaluation.json") for folder in folders]
    per_fold = [
        {"fold": number, "images": evaluation["test"]["images"]}
        | {"subjects": evaluation["test"]["subjects"], "best_epoch": evaluation["best_epoch"]}
        | {name: evaluation["test"][name]["value"] for name in PER_FOLD}
        for number, evaluation in enumerate(evaluations, start=1)
    ]
    evaluation = {
        "schema": "alexmri.evaluation/1",
        "protocol": protocol,
        "test": measured,
        "validation": None,
        "leak_probe": probe,
        "folds": per_fold,
        "over_folds": {
            name: mean_and_deviation([row[name] for row in per_fold]) for name in PER_FOLD
        },
    }
    runs = [_read(folder / "run.json") for folder in folders]
    models = [_read(folder / "model" / "model.json") for folder in folders]
    run_facts = {
        **{key: runs[0][key] for key in runs[0] if not key.endswith("_seconds")},
        "training_seconds": round(sum(run["training_seconds"] for run in runs), 1),
        "total_seconds": round(sum(run["total_seconds"] for run in runs), 1),
        "pooling_seconds": round(time.monotonic() - started, 1),
    }
    write_atomically(output / PREDICTIONS, predictions_text(predictions, fold_of))
    counts = Counter(image.label for image in dataset.folder.images)
    write_measured(
        output,
        evaluation,
        {
            **evaluation,
            "title": f"AlexNet on brain-MRI slices, {folds}-fold cross-validation",
            "generated": runs[0]["started"],
            "history": [],
            "best_epoch": None,
            "predictions": predictions,
            "data": {
                "classes": list(dataset.classes),
                "counts": {"test": {name: counts[name] for name in dataset.classes}},
                "fingerprint": dataset.fingerprint,
                "warnings": warnings_of(dataset),
            },
            "settings": settings.model_dump(mode="json", exclude={"checkpoint_s3"}),
            "model": {
                "parameters": models[0]["architecture"]["parameters"],
                "temperature": statistics.fmean(model["temperature"] for model in models),
            },
            "run": run_facts,
            "plots": measured_plots(measured, predictions, f"all {folds} test folds"),
        },
    )
    write_json(output / "run.json", run_facts)
    return evaluation


def protocol_of(dataset: Dataset, folds: int) -> dict[str, Any]:
    """Return how train and test were kept apart, the `protocol` of evaluation.json."""
    return {
        "split_by": dataset.split.split_by,
        "folds": folds,
        "subjects": dataset.groups.count if dataset.groups else None,
        "subjects_shared": dataset.subjects_shared,
        "groups_from": dataset.groups.found_by if dataset.groups else None,
    }


def pooled(parts: Sequence[Predictions]) -> tuple[Predictions, tuple[int, ...]]:
    """Return the predictions of all folds in the order of their paths, and each image's fold."""
    paths = np.array([path for part in parts for path in part.paths])
    order = np.argsort(paths, kind="stable")
    fold_N = np.repeat(np.arange(1, len(parts) + 1), [len(part.paths) for part in parts])
    known = all(part.subjects_N is not None for part in parts)
    subjects = [subject for part in parts for subject in part.subjects_N or ()]
    return (
        Predictions(
            classes=parts[0].classes,
            labels_N=np.concatenate([part.labels_N for part in parts])[order],
            probabilities_NK=np.concatenate([part.probabilities_NK for part in parts])[order],
            subjects_N=tuple(subjects[i] for i in order) if known else None,
            paths=tuple(paths[order].tolist()),
        ),
        tuple(fold_N[order].tolist()),
    )


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Return mean and (sample) standard deviation over the folds."""
    return {"mean": statistics.fmean(values), "standard_deviation": statistics.stdev(values)}


def _read(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
