"""Measure baselines beside AlexNet on the very splits that `train` and `crossval` use.

    python bench/baselines.py DATA --out FILE.json [--only ROW ...] [--protocol slice subject]

Rows: `majority` always answers the commonest class of the training split, `nearest_neighbour` looks
up the most similar training slice, `logistic_regression` sees standardised pixels (C chosen on
validation), `resnet18` is torchvision's, trained from scratch (peers/resnet18.py). Protocols:
`slice` is `alexmri train --seed S`, mean and range over the seeds; `subject` is `alexmri crossval
--folds 5 --seed 0`, predictions of all folds pooled, with 95 % intervals by bootstrap over
subjects. Each row is written to FILE as it is done, in place of an earlier one.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import resnet18
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from alexmri.contract.resources import cpu_cores
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.data.split import Fold, classes_of_enough
from alexmri.evaluation.baselines import one_nearest_neighbour
from alexmri.evaluation.metrics import find_negative_class, measure
from alexmri.evaluation.predictions import Ints, Predictions, pool, restrict
from alexmri.files import write_json
from alexmri.model.forward import choose_compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.provenance import machine_document

ROWS = ("majority", "nearest_neighbour", "logistic_regression", "resnet18")
PROTOCOLS = ("slice", "subject")
# Every row sees whole images, stretched to the square, as the recipes of the seed project do.
WHOLE_IMAGE = {"center": "none", "intensity": "none"}
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_f1_without_small": "macro F1 without small classes",
    "demented_auc_by_subject": "AUC demented by person",
}
# Probabilities (N, K) of the test split, and what was chosen on the way.
Answer = tuple[np.ndarray, dict[str, Any]]


def majority(dataset: Dataset, settings: Settings) -> Answer:
    counts = np.bincount(dataset.part("train").labels_N, minlength=len(dataset.classes))
    answers_N = np.full(len(dataset.part("test")), counts.argmax())
    return np.eye(len(dataset.classes))[answers_N], {"class": dataset.classes[counts.argmax()]}


def nearest_neighbour(dataset: Dataset, settings: Settings) -> Answer:
    train, test = dataset.part("train"), dataset.part("test")
    answers_N = one_nearest_neighbour(test.pixels_NCHW, train.pixels_NCHW, train.labels_N)
    return np.eye(len(dataset.classes))[answers_N], {}


def logistic_regression(dataset: Dataset, settings: Settings) -> Answer:
    """Fit on train for each strength of regularisation; validation chooses, by macro F1."""
    parts = {name: dataset.part(name) for name in ("train", "validation", "test")}
    pixels = {name: part.pixels_NCHW[:].reshape(len(part), -1) for name, part in parts.items()}
    regression = LogisticRegression(max_iter=2000, warm_start=True)
    model = make_pipeline(StandardScaler(), regression)
    best, chosen, probabilities_NK = -1.0, 0.0, np.empty(0)
    for strength in STRENGTHS:
        regression.set_params(C=strength)
        with warnings.catch_warnings():
            # The weakest regularisation needs more steps than it is worth.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(pixels["train"] / 255.0, parts["train"].labels_N)
        answers_N = model.predict(pixels["validation"] / 255.0)
        score = f1_score(parts["validation"].labels_N, answers_N, average="macro")
        if score > best:
            best, chosen = score, strength
            probabilities_NK = model.predict_proba(pixels["test"] / 255.0)
    return probabilities_NK, {"C": chosen, "validation_macro_f1": best}


def measured_row(
    name: str,
    answer: Callable[[Dataset, Settings], Answer],
    splits: Mapping[str, tuple[Dataset, Settings]],
    protocol: str,
    folds: int,
) -> dict[str, Any]:
    """Answer and measure the test part of each split, by subject also all of them pooled."""
    first = next(iter(splits.values()))[0]
    images, groups = first.folder.images, first.subjects
    keys = groups.ids if groups else [image.name for image in images]
    kept = classes_of_enough(keys, [image.label for image in images], folds=folds)
    figures = partial(figures_of, kept=kept, from_look_up=name == "nearest_neighbour")
    rows: list[dict[str, Any]] = []
    parts = []
    for title, (dataset, settings) in splits.items():
        started = time.monotonic()
        probabilities_NK, chosen = answer(dataset, settings)
        seconds = round(time.monotonic() - started, 1)
        part = predictions_of(dataset, probabilities_NK)
        found = figures(part, replicates=0)
        values = {key: each and float(each["value"]) for key, each in found.items()}
        print(f"{name}, {title}: {values} {chosen} in {seconds} s", flush=True)
        rows.append({"split": title, **values, "chosen": chosen, "seconds": seconds})
        parts.append(part)
    return {
        "row": name,
        "protocol": protocol,
        "classes_not_small": kept,
        "splits": rows,
        "over_splits": {key: spread([row[key] for row in rows]) for key in FIGURES},
        "pooled": figures(pool(parts), replicates=1000) if protocol == "subject" else None,
    }


def predictions_of(dataset: Dataset, probabilities_NK: np.ndarray) -> Predictions:
    test = dataset.part("test")
    answers_N: Ints = probabilities_NK.argmax(axis=1)
    return Predictions(
        classes=dataset.classes,
        labels_N=test.labels_N,
        probabilities_NK=probabilities_NK,
        subjects_N=test.subjects,
        paths=test.names,
        nearest_N=answers_N,
    )


def figures_of(
    predictions: Predictions, *, kept: Sequence[str], from_look_up: bool, replicates: int
) -> dict[str, Any]:
    """Return the figures of the table; a look-up has no second choice among the classes kept."""
    healthy = find_negative_class(predictions.classes, None)
    measured = measure(predictions, negative_class=healthy, replicates=replicates)
    between = None
    if len(kept) > 1:
        between = measure(restrict(predictions, kept), replicates=replicates)
        between = between["baselines"]["nearest_neighbour"] if from_look_up else between
    people = measured["subject_level"]
    return {
        "accuracy": measured["accuracy"],
        "macro_f1": measured["macro_f1"],
        "macro_f1_without_small": between["macro_f1"] if between else None,
        "demented_auc_by_subject": people["demented"]["auc"] if people and healthy else None,
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return {
        "mean": statistics.fmean(known),
        "standard_deviation": deviation,
        "low": min(known),
        "high": max(known),
    }


def load_splits(
    data: Path, protocol: str, seeds: Sequence[int], folds: int
) -> dict[str, tuple[Dataset, Settings]]:
    """Return the splits of `train --seed S`, or of `crossval --folds N --seed 0`, by name."""
    load = partial(load_dataset, {"train": data}, workers=cpu_cores(), terminal=PlainTerminal())
    if protocol == "slice":
        layers = {seed: Layer("bench", {"seed": seed, **WHOLE_IMAGE}) for seed in seeds}
        chosen = {seed: resolve([layer]).settings for seed, layer in layers.items()}
        return {f"seed {seed}": (load(each), each) for seed, each in chosen.items()}
    by_subject = {"seed": 0, "split_by": "subject", **WHOLE_IMAGE}
    settings = resolve([Layer("bench", by_subject)]).settings
    numbers = range(1, folds + 1)
    return {f"fold {n}": (load(settings, fold=Fold(n, folds)), settings) for n in numbers}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows in Markdown: by slice the range over seeds, by subject the 95 % interval."""
    lines = [f"| split by | row | {' | '.join(FIGURES.values())} |"]
    lines.append(f"| --- | --- |{' ---: |' * len(FIGURES)}")
    for row in rows:
        cells = []
        for key in FIGURES:
            over, pooled = row["over_splits"][key], row["pooled"]
            if over is None:
                cells.append("")
                continue
            middle, low, high = over["mean"], over["low"], over["high"]
            if pooled:
                middle, (low, high) = pooled[key]["value"], pooled[key]["ci95"]
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {row['protocol']} | {row['row']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40, help="of resnet18")
    parser.add_argument("--stem", choices=("small", "torchvision"), default="small")
    options = parser.parse_args()
    answers: dict[str, Callable[[Dataset, Settings], Answer]] = {
        "majority": majority,
        "nearest_neighbour": nearest_neighbour,
        "logistic_regression": logistic_regression,
        "resnet18": partial(resnet18.train, epochs=options.epochs, stem=options.stem),
    }
    compute, done = choose_compute("auto"), dict[str, Any]()
    if options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        done = {f"{row['protocol']} {row['row']}": row for row in before}
    for protocol in options.protocol:
        splits = load_splits(options.data, protocol, options.seeds, options.folds)
        dataset = next(iter(splits.values()))[0]
        for name in options.only:
            row = measured_row(name, answers[name], splits, protocol, options.folds)
            row["machine"] = machine_document(compute.device, compute.precision)
            done[f"{protocol} {name}"] = row
            ordered = [done[f"{p} {r}"] for p in PROTOCOLS for r in ROWS if f"{p} {r}" in done]
            write_json(options.out, {"data_fingerprint": dataset.fingerprint, "rows": ordered})
    print(table(ordered))


if __name__ == "__main__":
    main()
