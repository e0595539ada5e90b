"""What a finished training leaves behind: figures, plots, report, card and model directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.audit import LeakProbe, warnings_of
from alexmri.data.dataset import Dataset, Part
from alexmri.evaluation.calibration import fit_temperature
from alexmri.evaluation.card import model_card
from alexmri.evaluation.metrics import Predictions, measure, statistics
from alexmri.evaluation.plots import confusion, curves, reliability, roc
from alexmri.evaluation.report import render_report
from alexmri.files import write_atomically, write_json
from alexmri.model.bundle import save_bundle
from alexmri.model.forward import Compute, predict_logits
from alexmri.model.predictor import softmax
from alexmri.training.loop import Run
from alexmri.training.provenance import code_document


def protocol_document(dataset: Dataset) -> dict[str, Any]:
    """Return how train and test were kept apart, the `protocol` of evaluation.json."""
    return {
        "split_by": dataset.split.split_by,
        "subjects": dataset.groups.count if dataset.groups else None,
        "subjects_shared": dataset.subjects_shared,
        "groups_from": dataset.groups.found_by if dataset.groups else None,
    }


def measure_run(run: Run, dataset: Dataset, probe: LeakProbe) -> dict[str, Any]:
    """Return everything the report, the card and the model file are made from."""
    settings, network = run.settings, run.best_network()
    served = Compute(run.compute.device, "fp32")
    validation, test = dataset.part("validation"), dataset.part("test")
    logits_NK = predict_logits(network, validation.pixels_NCHW, served)
    temperature = fit_temperature(logits_NK, validation.labels_N)
    on_validation = _predictions(validation, dataset.classes, logits_NK, temperature)
    on_test = None
    if len(test):
        logits_NK = predict_logits(network, test.pixels_NCHW, served)
        on_test = _predictions(test, dataset.classes, logits_NK, temperature)
    return {
        "protocol": protocol_document(dataset),
        "leak_probe": probe.document(),
        "predictions": on_test or on_validation,
        "test": measure(on_test, seed=settings.seed) if on_test else None,
        "validation": measure(on_validation, seed=settings.seed),
        "history": run.progress.history,
        "best_epoch": run.progress.best_epoch,
        "data": {
            "classes": list(dataset.classes),
            "counts": dataset.counts(),
            "fingerprint": dataset.fingerprint,
            "warnings": warnings_of(dataset),
        },
        "settings": settings.model_dump(mode="json"),
        "model": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "temperature": temperature,
        },
    }


def draw_plots(facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return PNG pictures by name."""
    measured = facts["test"] or facts["validation"]
    title = "test split" if facts["test"] else "validation split"
    matrix = measured["confusion_matrix"]
    return {
        "curves": curves(facts["history"], best_epoch=facts["best_epoch"]),
        "confusion": confusion(matrix["counts"], matrix["classes"], title),
        "reliability": reliability(measured["reliability"]["bins"]),
        "roc": roc(facts["predictions"]),
    }


def write_model(folder: Path, run: Run, dataset: Dataset, facts: Mapping[str, Any]) -> None:
    """Write the model directory."""
    settings = run.settings
    save_bundle(
        folder,
        run.best_network(),
        classes=dataset.classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        temperature=facts["model"]["temperature"],
        facts={
            "settings": facts["settings"],
            "split": facts["protocol"],
            "data": facts["data"],
            "code": code_document(),
            "best_epoch": facts["best_epoch"],
            "epochs_trained": len(facts["history"]),
            "leak_probe": facts["leak_probe"],
            "metrics": {"validation": facts["validation"], "test": facts["test"]},
        },
        card=model_card(facts),
    )


def write_results(
    output: Path, facts: Mapping[str, Any], plots: Mapping[str, bytes], run_facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write figures, plots and report; run.json comes last and says that the run is finished."""
    evaluation = {
        "schema": "alexmri.evaluation/1",
        **{key: facts[key] for key in ("protocol", "test", "validation", "leak_probe")},
        "best_epoch": facts["best_epoch"],
    }
    write_json(output / "evaluation.json", evaluation)
    if facts["test"]:
        write_json(output / "statistics.json", statistics(facts["test"]))
    for name, png in plots.items():
        write_atomically(output / f"{name}.png", png)
    report = render_report(
        {
            **facts,
            "title": "AlexNet on brain-MRI slices",
            "generated": run_facts["started"],
            "run": run_facts,
            "plots": plots,
        }
    )
    write_atomically(output / "report.html", report)
    write_json(output / "run.json", run_facts)
    return evaluation


def test_metrics(test: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Return the test figures of the last metric line; nothing where there is no test split."""
    if test is None:
        return {}
    return {
        "test_loss": test["log_loss"]["value"],
        "test_accuracy": test["accuracy"]["value"],
        "test_macro_f1": test["macro_f1"]["value"],
    }


def _predictions(
    part: Part, classes: tuple[str, ...], logits_NK: NDArray[np.float32], temperature: float
) -> Predictions:
    return Predictions(
        classes=classes,
        labels_N=part.labels_N,
        probabilities_NK=softmax(logits_NK, temperature),
        subjects_N=part.subjects,
        paths=part.names,
    )
