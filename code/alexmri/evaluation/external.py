"""How far measured images are from those of the model's own data, and what that does to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.split import deal
from alexmri.evaluation.calibration import TEMPERATURES, fit_temperature
from alexmri.evaluation.metrics import measure
from alexmri.evaluation.predictions import Floats, Predictions
from alexmri.evaluation.rates import ratio
from alexmri.evaluation.resampling import estimate, resamples, units_of
from alexmri.model.bundle import Bundle
from alexmri.model.predictor import softmax

# Above this percentile of the validation slices an image is called unusual (see model/ood.py).
UNUSUAL = 0.99
# Parts of the subjects, each recalibrated by what the others say.
PARTS = 5
# With fewer subjects a temperature follows them, and not the data they come from.
MIN_SUBJECTS = 10
SCORES = ("log_loss", "brier", "ece")


def measure_external(
    bundle: Bundle,
    predictions: Predictions,
    logits_NK: NDArray[np.float32],
    ood_percentile_N: Floats | None,
    overlap: Mapping[str, Any],
    measured: Mapping[str, Any],
    *,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Return what evaluation.json says under `external`.

    `logits_NK` are those of `predictions`, `overlap` is what `find_overlap` returned and `measured`
    what `measure` did. `calibration` has log loss, Brier score and ECE on the model's `own` test
    split (validation where it had none; None where it does not tell), and here: `original`, with
    the stored temperature, and `recalibrated`, where the subjects of each of PARTS parts have the
    temperature fitted to the other parts, so that nobody is measured with what was fitted to them.
    `temperature` has the stored one and the one that fits all images here, None where `fitted` has
    none. With fewer than MIN_SUBJECTS subjects (images, where subjects are unknown) nothing is
    fitted. `unusual` is the share of images above the percentile UNUSUAL, beside the share that is
    expected of images like the validation slices; None for a model that cannot tell.
    """
    keys = predictions.subjects_N or tuple(map(str, range(len(predictions.labels_N))))
    own_split, own = _own_calibration(bundle.document)
    fitted, recalibrated = None, None
    if len(set(keys)) >= MIN_SUBJECTS:
        fitted = fitted_temperature(logits_NK, predictions.labels_N)
        again_NK = recalibrate(
            logits_NK, predictions.labels_N, keys, stored=bundle.temperature, seed=seed
        )
        again = replace(predictions, probabilities_NK=again_NK, nearest_N=None)
        recalibrated = measure(again, seed=seed, replicates=replicates)["calibration"]["after"]
    unusual = None
    if ood_percentile_N is not None and bundle.ood is not None:
        unusual = {
            "above": UNUSUAL,
            "expected": round(expected_share(len(bundle.ood.distances_V)), 6),
            "share": _share(ood_percentile_N > UNUSUAL, predictions, seed, replicates),
        }
    return {
        **overlap,
        "resampled_by": measured["resampled_by"],
        "calibration": {
            "temperature": {"stored": bundle.temperature, "fitted_here": fitted},
            "own_split": own_split,
            "own": own,
            "original": measured["calibration"]["after"],
            "recalibrated": recalibrated,
        },
        "unusual": unusual,
    }


def find_overlap(
    bundle: Bundle, sha256: Sequence[str], subjects: Sequence[str] | None, *, same_data: bool
) -> dict[str, Any]:
    """Return how many of the images the model's own data set holds, by the content of the files.

    `images_in_training` are those it was trained with, `subjects_in_training` the subjects on them,
    `images_held_out` those of its validation and test splits; None where it does not tell.
    `is_external` is whether there are none of either; None where that is unknown. `same_data` is
    whether the images are known to be the whole data set.
    """
    in_training_N, held_out_N = (
        None if listed is None else np.isin(np.array(sha256), np.array(listed.split(), dtype=str))
        for listed in (bundle.training_images, bundle.held_out_images)
    )
    trained = None if in_training_N is None else int(in_training_N.sum())
    held_out = None if held_out_N is None else int(held_out_N.sum())
    known = same_data or bool(trained) or bool(held_out)
    met = None
    if in_training_N is not None and subjects is not None:
        met = len({subjects[i] for i in np.flatnonzero(in_training_N).tolist()})
    return {
        "is_external": False if known else None if None in (trained, held_out) else True,
        "images": len(sha256),
        "images_in_training": trained,
        "subjects_in_training": met,
        "images_held_out": held_out,
    }


def fitted_temperature(logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]) -> float | None:
    """Return the temperature that fits best.

    None where every answer is right, or the best one lies at the edge of what is searched: then the
    images fit no temperature.
    """
    if (logits_NK.argmax(axis=1) == labels_N).all():
        return None
    temperature = fit_temperature(logits_NK, labels_N)
    lowest, highest = TEMPERATURES
    return temperature if 1.01 * lowest < temperature < 0.99 * highest else None


def expected_share(validation_slices: int) -> float:
    """Return the share above UNUSUAL of images that are like so many validation slices.

    The place of such an image among them is any of V + 1, each as likely.
    """
    below = math.floor(UNUSUAL * validation_slices)
    return (validation_slices - below) / (validation_slices + 1)


def recalibrate(
    logits_NK: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    keys: Sequence[str],
    *,
    stored: float,
    seed: int,
) -> Floats:
    """Return probabilities (N, K) of logits, each key's by the temperature fitted to other keys.

    The keys (N,), such as subjects, are dealt to PARTS parts as folds are. Where the others fit
    none, it is the `stored` temperature. ValueError for one key.
    """
    dealt = deal(keys, list(map(str, labels_N.tolist())), folds=PARTS, seed=seed)
    part_N = np.array([dealt[key] for key in keys])
    probabilities_NK = np.empty(logits_NK.shape, dtype=np.float64)
    for part in np.unique(part_N):
        inside_N = part_N == part
        temperature = fitted_temperature(logits_NK[~inside_N], labels_N[~inside_N])
        probabilities_NK[inside_N] = softmax(logits_NK[inside_N], temperature or stored)
    return probabilities_NK


def _share(
    chosen_N: NDArray[np.bool_], predictions: Predictions, seed: int, replicates: int
) -> dict[str, Any] | None:
    """Return the share of images with its interval, by resampling subjects where known."""
    units_N = units_of(predictions.subjects_N, len(chosen_N))
    counts_RU = np.concatenate(list(resamples(units_N, replicates, seed)))
    chosen_U, images_U = np.bincount(units_N, weights=chosen_N), np.bincount(units_N)
    return estimate(ratio(counts_RU @ chosen_U, counts_RU @ images_U))


def _own_calibration(document: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """Return the split that model.json tells of, and log loss, Brier score and ECE on it."""
    metrics = document.get("metrics", {})
    for split in ("test", "validation"):
        if isinstance(found := metrics.get(split), Mapping):
            scores = {name: found.get(name) for name in SCORES}
            *estimates, ece = scores.values()
            if isinstance(ece, float) and all(isinstance(each, Mapping) for each in estimates):
                return split, scores
    return None, None
