"""What a finished training leaves behind: figures, plots, report, card and model directory."""

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.contract.resources import cpu_cores
from alexmri.data.dataset import Dataset, Part, preprocessing_of
from alexmri.data.split import CALIBRATION
from alexmri.evaluation.baselines import one_nearest_neighbour
from alexmri.evaluation.calibration import fit_temperature
from alexmri.evaluation.metrics import find_negative_class, measure
from alexmri.evaluation.prediction_sets import measure_sets
from alexmri.evaluation.predictions import Ints, Predictions
from alexmri.evaluation.report import model_card, write_measured
from alexmri.evaluation.robustness import Labelled, measure_robustness, sample_size
from alexmri.evaluation.top_losses import find_top_losses
from alexmri.files import write_json
from alexmri.model.alexnet import AlexNet
from alexmri.model.bundle import ONNX, save_bundle
from alexmri.model.conformal import Conformal, calibrate
from alexmri.model.forward import Compute, predict_logits
from alexmri.model.onnx import export_onnx
from alexmri.model.predictor import softmax
from alexmri.terminal import Terminal
from alexmri.training.loop import Run
from alexmri.training.provenance import code_document

# What evaluation.json holds of the facts.
EVALUATED = ("protocol", "test", "validation", "prediction_sets", "robustness", "leak_probe")


def protocol_document(dataset: Dataset) -> dict[str, Any]:
    """Return what was compared and how it was kept apart, the `protocol` of evaluation.json."""
    return {
        "split_by": dataset.split.split_by,
        "subjects": dataset.subjects.count if dataset.subjects else None,
        "compared_with": dataset.compared_with,
        "subjects_shared": dataset.subjects_shared,
        "subjects_between": dataset.subjects_between,
        "synthetic": dataset.synthetic,
        "groups_from": dataset.subjects.found_by if dataset.subjects else None,
    }


def measure_run(
    run: Run,
    dataset: Dataset,
    audit: Mapping[str, Any],
    terminal: Terminal,
    *,
    test: bool = True,
) -> dict[str, Any]:
    """Return everything the report, the card and the model file are made from.

    `audit` is the document of the data's audit. Without `test` the test split is left alone, and
    what can be done without, for a model that must be written soon.
    """
    settings, network = run.settings, run.state.best_network()
    served = Compute(run.compute.device, "fp32")
    negative_class = find_negative_class(dataset.classes, settings.negative_class)
    train, validation, held_out = (dataset.part(name) for name in ("train", "validation", "test"))
    logits_NK = predict_logits(network, validation.pixels_NCHW, served)
    temperature = fit_temperature(logits_NK, validation.labels_N)

    def predictions(part: Part, logits_NK: NDArray[np.float32]) -> Predictions:
        nearest_N = None
        if test:
            nearest_N = one_nearest_neighbour(part.pixels_NCHW, train.pixels_NCHW, train.labels_N)
        return predictions_of(part, dataset.classes, logits_NK, temperature, nearest_N)

    on_validation = predictions(validation, logits_NK)
    conformal = calibrate_sets(network, dataset, served, temperature, settings.coverage)
    on_test, top_losses, robustness = None, [], None
    if test and len(held_out):
        on_test = predictions(held_out, predict_logits(network, held_out.pixels_NCHW, served))
        files = [dataset.folder.images[i].path for i in dataset.split.indices("test")]
        robustness = measure_robustness(
            Labelled(files, held_out.labels_N, held_out.subjects),
            len(dataset.classes),
            lambda pixels_NCHW: predict_logits(network, pixels_NCHW, served),
            image_size=settings.image_size,
            channels=settings.channels,
            preprocessing=preprocessing_of(settings),
            at_most=sample_size(len(run.progress.history) * len(train)),
            workers=cpu_cores(),
            terminal=terminal,
        )
    if test:
        shown = on_test or on_validation
        pixels_NCHW = (held_out if on_test else validation).pixels_NCHW
        top_losses = find_top_losses(shown, pixels_NCHW, network, served.device)

    def measured(predictions: Predictions) -> dict[str, Any]:
        return measure(predictions, negative_class=negative_class, seed=settings.seed)

    with terminal.working("computing figures and their intervals"):
        figures = {
            "test": measured(on_test) if on_test else None,
            "validation": measured(on_validation),
            "prediction_sets": measure_sets(on_test, conformal) if on_test and conformal else None,
        }

    return {
        "protocol": protocol_document(dataset),
        "leak_probe": {key: audit["leak_probe"][key] for key in ("slice", "subject", "shuffled")},
        "audit": audit,
        "predictions": on_test or on_validation,
        **figures,
        "conformal": conformal.model_dump(mode="json") if conformal else None,
        "robustness": robustness,
        "top_losses": top_losses,
        "history": run.progress.history,
        "best_epoch": run.progress.best_epoch,
        "data": {
            "classes": list(dataset.classes),
            "counts": dataset.counts(),
            "subjects": subjects_by_split(dataset),
            "synthetic": dataset.synthetic,
            "fingerprint": dataset.fingerprint,
            "warnings": list(audit["warnings"]),
        },
        # Where checkpoints were kept says nothing about the model, and names somebody's bucket.
        "settings": settings.model_dump(mode="json", exclude={"checkpoint_s3", "workers_per_host"}),
        "model": {
            "parameters": sum(p.numel() for p in network.parameters()),
            "temperature": temperature,
        },
    }


def calibrate_sets(
    network: AlexNet, dataset: Dataset, served: Compute, temperature: float, coverage: float | None
) -> Conformal | None:
    """Return what makes prediction sets, by the images that are set aside for it; None without."""
    if coverage is None:
        return None
    part = dataset.part(CALIBRATION)
    return calibrate(
        softmax(predict_logits(network, part.pixels_NCHW, served), temperature),
        part.labels_N,
        part.subjects,
        coverage=coverage,
        unit=_unit(dataset),
    )


def _unit(dataset: Dataset) -> str:
    """Return what the promise of prediction sets is about."""
    if dataset.subjects is None:
        return "one slice; who is on it is unknown, so nothing is promised about new people"
    if (dataset.subjects_between or {}).get(f"train_{CALIBRATION}"):
        return "one slice of a person who is in training too (each person weighs one)"
    return "one slice of a new person (each person weighs one)"


def subjects_by_split(dataset: Dataset) -> dict[str, dict[str, int]] | None:
    """Return split -> class -> number of subjects ("all": in the whole set), None if unknown."""
    if dataset.subjects is None:
        return None
    rows = list(
        zip(dataset.split.assigned, dataset.folder.images, dataset.subjects.ids, strict=True)
    )
    seen = {(split, image.label, subject) for split, image, subject in rows}
    seen |= {("all", image.label, subject) for _, image, subject in rows}
    found = Counter((split, label) for split, label, _ in seen)
    splits = (*dataset.counts(), "all")
    return {split: {name: found[split, name] for name in dataset.classes} for split in splits}


def predictions_of(
    part: Part,
    classes: tuple[str, ...],
    logits_NK: NDArray[np.float32],
    temperature: float,
    nearest_N: Ints | None,
) -> Predictions:
    """Return what a network said about `part`; `nearest_N` is what the 1-NN baseline answered."""
    return Predictions(
        classes=classes,
        labels_N=part.labels_N,
        probabilities_NK=softmax(logits_NK, temperature),
        subjects_N=part.subjects,
        paths=part.names,
        uncalibrated_NK=softmax(logits_NK),
        nearest_N=nearest_N,
    )


def draw_plots(facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return PNG pictures by name."""
    # matplotlib and scikit-learn: seconds that no training step waits for.
    from alexmri.evaluation.plots import curves, measured_plots

    measured = facts["test"] or facts["validation"]
    title = "test split" if facts["test"] else "validation split"
    return {
        "curves": curves(facts["history"], best_epoch=facts["best_epoch"]),
        **measured_plots(measured, facts["predictions"], title),
    }


def write_model(
    folder: Path, run: Run, dataset: Dataset, facts: Mapping[str, Any], *, soon: bool = False
) -> None:
    """Write the model directory; `soon` leaves out what takes a while and can be done without."""
    settings, network = run.settings, run.state.best_network()
    ood = None
    if not soon:
        # scikit-learn: seconds that no training step waits for.
        from alexmri.training.ood_fit import fit_ood_to_dataset

        ood = fit_ood_to_dataset(network, run.compute.device, dataset)
    with_onnx = settings.export_onnx and not soon
    if with_onnx:
        validation = dataset.part("validation")
        export_onnx(
            folder / ONNX,
            copy.deepcopy(network).cpu().eval(),
            classes=dataset.classes,
            temperature=facts["model"]["temperature"],
            pixels_NCHW=validation.pixels_NCHW[:64],
            preprocessing=preprocessing_of(settings),
        )
    images = list(zip(dataset.cache.sha256, dataset.split.assigned, strict=True))
    save_bundle(
        folder,
        network,
        classes=dataset.classes,
        image_size=settings.image_size,
        channels=settings.channels,
        preprocessing=preprocessing_of(settings),
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
            "slicing": dataset.slicing.model_dump(mode="json") if dataset.slicing else None,
            "conformal": facts["conformal"],
            "metrics": {"validation": facts["validation"], "test": facts["test"]},
        },
        card=model_card(facts),
        training_images=[sha for sha, split in images if split == "train"],
        held_out_images=[sha for sha, split in images if split != "train"],
        also=(ONNX,) if with_onnx else (),
        ood=ood,
    )


def write_results(
    output: Path, facts: Mapping[str, Any], plots: Mapping[str, bytes], run_facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write figures, plots and report; run.json comes last and says that the run is finished."""
    evaluation = {
        "schema": "alexmri.evaluation/1",
        **{key: facts[key] for key in EVALUATED},
        "best_epoch": facts["best_epoch"],
    }
    write_measured(
        output,
        evaluation,
        {
            **facts,
            "title": "AlexNet on brain-MRI slices",
            "generated": run_facts["started"],
            "run": run_facts,
            "code": code_document(),
            "plots": plots,
        },
    )
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
