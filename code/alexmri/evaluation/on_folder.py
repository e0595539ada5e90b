"""Measure a model directory on a folder of class folders."""

from pathlib import Path
from typing import Any

import numpy as np

from alexmri.data.dataset import fingerprint
from alexmri.data.folders import Folder, discover_for_test
from alexmri.data.groups import Groups, find_groups
from alexmri.data.store import open_store
from alexmri.errors import UserError
from alexmri.evaluation.metrics import Predictions, measure
from alexmri.model.predictor import Predictor
from alexmri.settings import Settings
from alexmri.terminal import Terminal


def evaluate_folder(
    predictor: Predictor, root: Path, *, workers: int, terminal: Terminal
) -> tuple[dict[str, Any], Predictions]:
    """Return the content of evaluation.json for `root`, and the predictions behind it.

    Of a folder that holds train / valid / test folders only test is measured. People are found as
    in the training of the model.

    Raises:
        UserError: bad data, or a class the model does not know.
    """
    bundle = predictor.bundle
    folder = discover_for_test(root)
    unknown = [name for name in folder.classes if name not in bundle.classes]
    if unknown:
        raise UserError(
            f"{root} has a class folder '{unknown[0]}', which the model does not know; its classes"
            f" are {', '.join(bundle.classes)}"
        )
    settings = Settings.model_validate(bundle.document["settings"])
    groups = _groups(folder, settings, terminal)
    store = open_store(
        folder,
        image_size=bundle.image_size,
        channels=bundle.channels,
        workers=workers,
        terminal=terminal,
    )
    predictions = Predictions(
        classes=bundle.classes,
        labels_N=np.array([bundle.classes.index(image.label) for image in folder.images]),
        probabilities_NK=predictor.probabilities(store.pixels_NCHW),
        subjects_N=groups.subjects if groups else None,
        paths=tuple(image.name for image in folder.images),
    )
    if fingerprint(folder, store) == bundle.document["data"]["fingerprint"]:
        terminal.warn("these are the very images the model was trained with: no test of anything")
    document = {
        "schema": "alexmri.evaluation/1",
        "model": bundle.version,
        "protocol": {
            "split_by": "folders",
            "subjects": groups.count if groups else None,
            # Whether the model was trained on these people cannot be told from a folder.
            "subjects_shared": None,
            "groups_from": groups.found_by if groups else None,
        },
        "test": measure(predictions),
        "leak_probe": {"slice": None, "subject": None, "shuffled": None},
    }
    return document, predictions


def _groups(folder: Folder, settings: Settings, terminal: Terminal) -> Groups | None:
    """Find people as in training, or else by file names: another folder may be named otherwise."""
    try:
        return find_groups(
            folder.images, folder.root, regex=settings.group_regex, csv_file=settings.groups_file
        )
    except UserError as error:
        terminal.warn(f"people are looked for in file names, because {error}")
        return find_groups(folder.images, folder.root, regex=None, csv_file=None)
