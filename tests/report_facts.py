"""Facts of made-up evaluations, for tests of verdict, report and plots."""

from dataclasses import replace
from typing import Any

import numpy as np

from alexmri.data.groups_table import Column
from alexmri.evaluation import metrics, plots
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.subgroups import measure_subgroups

CLASSES = ("Mild", "Moderate", "NonDemented", "VeryMild")
LEAKY = {"slice": 0.992, "subject": 0.462, "shuffled": 0.989}
EXISTING = {
    "split_by": "none",
    "subjects": 40,
    "subjects_shared": None,
    "groups_from": "names",
    "trained_on_these_images": False,
    "images_in_training": 0,
}
UNKNOWN = {"slice": None, "subject": None, "shuffled": None}
SHARED = {"split_by": "slice", "subjects": 200, "subjects_shared": 198, "groups_from": "names"}
APART = {"split_by": "subject", "subjects": 200, "subjects_shared": 0, "groups_from": "names"}
NOBODY = {"split_by": "slice", "subjects": None, "subjects_shared": None, "groups_from": None}


def predictions(classes: tuple[str, ...] = CLASSES, people: int | None = 40) -> Any:
    rng = np.random.default_rng(0)
    subjects_N = np.arange(400) % (people or 40)
    labels_N = rng.integers(0, len(classes), people or 40)[subjects_N]
    logits_NK = rng.normal(size=(400, len(classes)))
    logits_NK[np.arange(400), labels_N] += 2
    odds_NK = np.exp(logits_NK)
    return Predictions(
        classes=classes,
        labels_N=labels_N,
        probabilities_NK=odds_NK / odds_NK.sum(axis=1, keepdims=True),
        subjects_N=tuple(f"p{s}" for s in subjects_N) if people else None,
        paths=("x.png",) * 400,
        uncalibrated_NK=np.full((400, len(classes)), 1 / len(classes)),
        nearest_N=rng.integers(0, len(classes), 400),
    )


def lead(value: float, p_value: float) -> dict[str, Any]:
    return {"value": value, "ci95": [value - 0.1, value + 0.1], "p_value": p_value}


def baseline(accuracy: dict[str, Any], macro_f1: dict[str, Any], **more: str) -> dict[str, Any]:
    figures = {name: {"value": 0.5, "ci95": None} for name in ("accuracy", "macro_f1")}
    return {**figures, "difference": {"accuracy": accuracy, "macro_f1": macro_f1}, **more}


ABOVE, LEVEL, BELOW = lead(0.2, 0.001), lead(0.01, 0.6), lead(-0.2, 0.001)


def result(value: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    """Return the part of `measure`'s block that the verdict reads."""
    return {
        "accuracy": {"value": value, "ci95": [low, high]},
        "majority_class": {"class": "NonDemented", "accuracy": 0.5},
        "baselines": {
            "majority": baseline(ABOVE, ABOVE, **{"class": "NonDemented"}),
            "nearest_neighbour": baseline(ABOVE, ABOVE),
        },
        "resampled_by": "subject",
        "subjects": 60,
    } | changes


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_loss": 1.2 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "val_macro_f1": 1 - 0.7 / epoch,
            "learning_rate": 0.001,
        }
        for epoch in range(1, epochs + 1)
    ]


def facts(classes: tuple[str, ...] = CLASSES, **changes: Any) -> dict[str, Any]:
    p = predictions(classes)
    measured = metrics.measure(p, replicates=20)
    counts = {name: 10 + k for k, name in enumerate(classes)}
    return {
        "title": "AlexNet on brain MRI",
        "generated": None,
        "protocol": SHARED,
        "leak_probe": LEAKY,
        "test": measured,
        "validation": measured,
        "history": history(3),
        "best_epoch": 2,
        "data": {
            "classes": list(classes),
            "counts": {"train": counts, "validation": counts, "test": counts},
            "subjects": None,
            "fingerprint": "sha256:abc",
            "warnings": ["Two images are the same."],
        },
        "audit": {
            "verdict": ["It leaks."],
            "near_duplicate_counts": {"pairs": 3, "across_splits": 2},
        },
        "prediction_sets": None,
        "robustness": None,
        "top_losses": [],
        "code": {"version": "7.8.9"},
        "settings": {"epochs": 3, "split_ratios": [0.7, 0.15, 0.15], "group_regex": None},
        "run": {"device": "cpu", "versions": {"torch": "2.14.1"}},
        "model": {"parameters": 24_700_000, "temperature": 1.25},
        "plots": {"roc": plots.roc(p)},
    } | changes


def external(**changes: Any) -> dict[str, Any]:
    """Return what `measure_external` does, of data where calibration moved."""
    score = {"value": 0.4321, "ci95": [0.4, 0.47]}
    calibration = {"ece": 0.2, "brier": score, "log_loss": score}
    return {
        **{"is_external": True, "images": 400, "images_in_training": 0},
        **{"subjects_in_training": 0, "images_held_out": 0, "resampled_by": "subject"},
        "calibration": {
            "temperature": {"stored": 1.25, "fitted_here": 3.5},
            "own_split": "test",
            "own": calibration | {"ece": 0.04},
            "original": calibration,
            "recalibrated": calibration | {"ece": 0.05},
        },
        "unusual": {"above": 0.99, "expected": 0.01, "share": {"value": 0.12, "ci95": [0.1, 0.2]}},
    } | changes


def subgroups(classes: tuple[str, ...] = CLASSES, name: str = "<b>north</b>") -> dict[str, Any]:
    """Return what `measure_subgroups` does, of a site of that name, one without, and sexes."""
    p = replace(predictions(classes), paths=tuple(map(str, range(400))))
    sites = {str(i): name if i % 40 < 15 else "south" for i in range(400) if i % 40 < 35}
    sexes = {str(i): "FM"[i % 2] for i in range(400)}
    columns = [Column("site", values=sites), Column("sex", values=sexes)]
    return measure_subgroups(p, columns, negative_class=classes[-1], replicates=20)


def draw_all(
    classes: tuple[str, ...] = CLASSES, negative_class: str = "NonDemented"
) -> dict[str, bytes]:
    """Return every plot of a report, as PNG."""
    p = predictions(classes)
    measured = metrics.measure(p, negative_class=negative_class, replicates=5)
    return {
        "curves": plots.curves(history(5), best_epoch=3),
        **plots.measured_plots(measured, p, "Test"),
    }
