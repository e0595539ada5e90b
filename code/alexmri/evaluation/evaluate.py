"""Measure a model directory on a folder of class folders."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alexmri.data.cache import DecodedCache, open_cache
from alexmri.data.dataset import fingerprint, unknown_subjects, without
from alexmri.data.folders import Folder, discover_for_test
from alexmri.data.groups_table import GROUPS_FILE, Column, find_table, read_columns
from alexmri.data.pixels import Preprocessing
from alexmri.data.subjects import KAGGLE, Subjects, find_subjects
from alexmri.data.synthetic import FOUND_BY_NAMES, NOTICE, is_synthetic
from alexmri.errors import UserError
from alexmri.evaluation.external import find_overlap, measure_external
from alexmri.evaluation.metrics import find_negative_class, measure
from alexmri.evaluation.prediction_sets import measure_sets
from alexmri.evaluation.predictions import Predictions
from alexmri.evaluation.resampling import compare
from alexmri.evaluation.robustness import IMAGES_OF_A_FOLDER, Labelled, measure_robustness
from alexmri.evaluation.subgroups import measure_subgroups
from alexmri.evaluation.top_losses import find_top_losses
from alexmri.model.bundle import Bundle
from alexmri.model.predictor import Predictor, softmax
from alexmri.settings import settings_of_model
from alexmri.terminal import Terminal, first_few, number_of


def evaluate_folder(
    predictor: Predictor,
    root: Path,
    *,
    workers: int,
    terminal: Terminal,
    on_bad_image: Literal["fail", "skip"] = "fail",
    against: Predictor | None = None,
    subgroups: Sequence[Column] = (),
) -> dict[str, Any]:
    """Measure the images in `root`; return the facts that document and report are made from.

    Beside those of `report.render_report` (but for title, generated, run and plots, which are
    whoever's writes them) they hold "predictions". Of a folder that holds train / valid / test
    folders only test is measured. Subjects are found as in the training of the model. With
    `on_bad_image` "skip" images that cannot be read are left out, which is said. "against" is how
    the model compares with the model `against` on the same images, None without one. "external" is
    what `measure_external` returns, and "subgroups" what `measure_subgroups` does, None without
    `subgroups`: columns of groups.csv in `root`, or else of the table that the training had, which
    then tells subjects too.

    Raises:
        UserError: bad data, a class the model does not know, other classes in `against`, or columns
            that cannot be read.
    """
    bundle = predictor.bundle
    if against:
        _require_same_classes(bundle, against.bundle)
    folder = discover_for_test(root)
    unknown = [name for name in folder.classes if name not in bundle.classes]
    if unknown:
        raise UserError(
            f"{root} has a class folder '{unknown[0]}', which the model does not know; its classes"
            f" are {', '.join(bundle.classes)}"
        )
    settings = settings_of_model(bundle.document.get("settings", {}))
    groups_file = settings.groups_file
    if subgroups:
        if (folder.root / GROUPS_FILE).is_file():
            groups_file = str(folder.root / GROUPS_FILE)
        elif groups_file:
            table = find_table(folder.root, groups_file)
            if not table.resolve().is_relative_to(folder.root.resolve()):
                terminal.warn(
                    f"subgroups and people are read from {table}, the table of the training,"
                    f" because {folder.root} has no {GROUPS_FILE}"
                )
        subgroups = read_columns(subgroups, folder.images, folder.root, groups_file)
    groups = _groups(folder, settings.group_regex, groups_file, terminal)
    cache = open_cache(
        folder,
        image_size=bundle.image_size,
        channels=bundle.channels,
        preprocessing=bundle.preprocessing,
        workers=workers,
        terminal=terminal,
        bad_images="list" if on_bad_image == "skip" else "fail",
    )
    found_images = len(folder.images)
    synthetic = is_synthetic(folder)
    if synthetic and groups and groups.found_by == KAGGLE.title:
        groups = replace(groups, found_by=FOUND_BY_NAMES)
    folder, groups = without(cache.skipped, folder, groups)
    skipped = [f"{name} {reason}" for name, reason in cache.skipped.items()]
    if not folder.images:
        raise UserError(f"none of the images in {root} can be read: {first_few(skipped, '; ')}")
    warnings = [*folder.left_out, *unknown_subjects(folder, groups)]
    if skipped:
        warnings.append(
            f"left out because on_bad_image is skip: {len(skipped)} of"
            f" {number_of(found_images, 'image')}: {first_few(skipped, '; ')}"
        )
    if synthetic:
        terminal.warn(NOTICE)
    elif bundle.document.get("data", {}).get("synthetic"):
        warnings.append("the model was trained on synthetic images, which alexmri had drawn")
    for warning in warnings:
        terminal.warn(warning)
    logits_NK = predictor.logits(cache.pixels_NCHW)
    predictions = _predictions(bundle, logits_NK, folder, groups)
    compared = None
    if against:
        same_pixels = _kind_of_pixels(bundle) == _kind_of_pixels(against.bundle)
        known = cache if same_pixels else None
        compared = _compare_with(against, predictions, folder, groups, known, workers, terminal)
    overlap = _overlap(bundle, folder, groups, cache)
    trained_on = _trained_on(overlap, terminal, "the model")
    negative_class = find_negative_class(bundle.classes, settings.negative_class)
    with terminal.working("computing figures and their intervals"):
        measured = measure(predictions, negative_class=negative_class)
        sets = measure_sets(predictions, bundle.conformal) if bundle.conformal else None
    counts = Counter(image.label for image in folder.images)
    subjects = None
    if groups:
        rows = zip(folder.images, groups.ids, strict=True)
        met = Counter(label for label, _ in {(image.label, subject) for image, subject in rows})
        subjects = {"test": {name: met[name] for name in bundle.classes}}
    return {
        "protocol": {
            "split_by": "none",
            "subjects": groups.count if groups else None,
            # Whether the model was trained on these people cannot be told from a folder.
            "compared_with": None,
            "subjects_shared": None,
            "subjects_between": None,
            "synthetic": synthetic,
            "groups_from": groups.found_by if groups else None,
            **trained_on,
        },
        "skipped_images": dict(cache.skipped),
        "leak_probe": {"slice": None, "subject": None, "shuffled": None},
        "predictions": predictions,
        "audit": None,
        "test": measured,
        "external": measure_external(
            bundle,
            predictions,
            logits_NK,
            predictor.predict(cache.pixels_NCHW).ood_percentile_N if bundle.ood else None,
            overlap,
            measured,
        ),
        "subgroups": measure_subgroups(predictions, subgroups, negative_class=negative_class)
        if subgroups
        else None,
        "validation": None,
        "prediction_sets": sets,
        "robustness": measure_robustness(
            Labelled(
                [image.path for image in folder.images],
                predictions.labels_N,
                predictions.subjects_N,
            ),
            len(bundle.classes),
            predictor.logits,
            image_size=bundle.image_size,
            channels=bundle.channels,
            preprocessing=bundle.preprocessing,
            at_most=IMAGES_OF_A_FOLDER,
            workers=workers,
            terminal=terminal,
        ),
        "against": compared,
        "top_losses": find_top_losses(
            predictions, cache.pixels_NCHW, bundle.network, predictor.compute.device
        ),
        "history": [],
        "best_epoch": None,
        "data": {
            "classes": list(bundle.classes),
            "counts": {"test": {name: counts[name] for name in bundle.classes}},
            "subjects": subjects,
            "synthetic": synthetic,
            "fingerprint": fingerprint(folder, cache),
            "warnings": warnings,
        },
        "settings": bundle.document.get("settings", {}),
        "model": {
            "version": bundle.version,
            "parameters": bundle.document["architecture"]["parameters"],
            "temperature": bundle.temperature,
        },
    }


def evaluation_document(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of evaluation.json."""
    kept = (
        *("protocol", "test", "external", "subgroups", "prediction_sets", "robustness"),
        *("leak_probe", "skipped_images"),
    )
    return {
        "schema": "alexmri.evaluation/1",
        "model": facts["model"]["version"],
        **{key: facts[key] for key in kept},
        **({"against": facts["against"]} if facts["against"] else {}),
    }


def _predictions(
    bundle: Bundle, logits_NK: NDArray[np.float32], folder: Folder, groups: Subjects | None
) -> Predictions:
    classes = bundle.classes
    return Predictions(
        classes=classes,
        labels_N=np.array([classes.index(image.label) for image in folder.images]),
        probabilities_NK=softmax(logits_NK, bundle.temperature),
        subjects_N=groups.ids if groups else None,
        paths=tuple(image.name for image in folder.images),
        uncalibrated_NK=softmax(logits_NK),
    )


def _require_same_classes(bundle: Bundle, other: Bundle) -> None:
    if bundle.classes != other.classes:
        raise UserError(
            f"the models have different classes: model {bundle.version} has"
            f" {', '.join(bundle.classes)}, and model {other.version} has"
            f" {', '.join(other.classes)}; compare models that were trained on the same class"
            " folders"
        )


def _compare_with(
    against: Predictor,
    predictions: Predictions,
    folder: Folder,
    groups: Subjects | None,
    cache: DecodedCache | None,
    workers: int,
    terminal: Terminal,
) -> dict[str, Any]:
    """Return what evaluation.json says of the other model, on the images that were measured.

    `cache` is None where that model takes other pixels.
    """
    other = against.bundle
    if cache is None:
        cache = open_cache(
            folder,
            image_size=other.image_size,
            channels=other.channels,
            preprocessing=other.preprocessing,
            workers=workers,
            terminal=terminal,
        )
    logits_NK = against.logits(cache.pixels_NCHW)
    overlap = _overlap(other, folder, groups, cache)
    return {
        "model": other.version,
        **_trained_on(overlap, terminal, "the other model"),
        **compare(predictions, _predictions(other, logits_NK, folder, groups)),
    }


def _kind_of_pixels(bundle: Bundle) -> tuple[Preprocessing, int, int]:
    return bundle.preprocessing, bundle.channels, bundle.image_size


def _overlap(
    bundle: Bundle, folder: Folder, groups: Subjects | None, cache: DecodedCache
) -> dict[str, Any]:
    """Return what `find_overlap` does; version 0.1.0 stored of all its images one fingerprint."""
    stored = bundle.document.get("data", {}).get("fingerprint")
    return find_overlap(
        bundle,
        cache.sha256,
        groups.ids if groups else None,
        same_data=fingerprint(folder, cache) == stored,
    )


def _trained_on(overlap: Mapping[str, Any], terminal: Terminal, model: str) -> dict[str, Any]:
    """Tell whether a model was trained with any of the images, and with how many.

    One is enough: only without any are all figures about new images. Both are None where the model
    does not list its training images.
    """
    count = overlap["images_in_training"]
    trained_on = count > 0 if count is not None else overlap["is_external"] is False or None
    if trained_on:
        terminal.warn(
            f"{model} was trained with {count or 'some'} of the {overlap['images']} images: the"
            " figures are not a test"
        )
    return {"trained_on_these_images": trained_on, "images_in_training": count}


def _groups(
    folder: Folder, regex: str | None, csv_file: str | None, terminal: Terminal
) -> Subjects | None:
    """Find subjects as in training, or else by file names: another folder has other names."""
    try:
        return find_subjects(folder.images, folder.root, regex=regex, csv_file=csv_file)
    except UserError as error:
        terminal.warn(f"people are looked for in file names, because {error}")
        return find_subjects(folder.images, folder.root, regex=None, csv_file=None)
