"""Measure predictions on images nobody trained on, with intervals that respect who is on them.

Every figure is a function of image weights: all ones give the value, resampled weights give the
interval. Where the people are known whole people are resampled (cluster bootstrap, Field and
Welsh 2007), since a person's slices look alike and are not independent; otherwise single images.
docs/reference.md says how each figure is computed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexmri.errors import UserError
from alexmri.evaluation.baselines import answers_of_baselines
from alexmri.evaluation.calibration import expected_calibration_error, reliability_bins
from alexmri.evaluation.predictions import Floats, Ints, Predictions, by_subject
from alexmri.evaluation.rates import (
    auc,
    confusion_matrix,
    mean_defined,
    rates,
    ratio,
    unit_matrices,
    weighted,
)
from alexmri.evaluation.resampling import (
    AVERAGES,
    compare_answers,
    estimate,
    resamples,
    spread,
    units_of,
)

# What is left of a folder's name in small letters, without digits, blanks and signs.
_HEALTHY = re.compile(
    r"non.*|not?dement(ed|ia)|no(impairment|disease|alzheimers?(disease)?|ad)"
    r"|(cognitive(ly)?)?(normals?|unimpaired)(controls?|cognition)?|cn|nc|hc"
    r"|healthy.*|controls?(group|subjects?)?"
)


def measure(
    predictions: Predictions,
    *,
    negative_class: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> dict[str, Any]:
    """Return every figure of one split, ready for JSON: undefined ones are None, never NaN.

    It serves a test split as well as the pooled predictions of a cross-validation (`pool`).
    Figures are {"value", "ci95": [low, high]}: the 2.5th and 97.5th percentile over `replicates`
    resamples, "ci95" None where there is one person or image only. Three things to know when
    reading them. An interval of zero width at 0 or 1 says that no error was seen, not that none
    can happen. Percentile intervals are somewhat too narrow below about 30 people. Macro F1
    averages the classes that occur in labels or predictions, balanced accuracy and macro AUC those
    that occur in the labels, as scikit-learn does; a class missing from a resample is left out of
    that resample's average too.

    "log_loss" clips probabilities at 2.2e-16 (float64's epsilon); "brier" is the sum over classes
    (0..2, Brier 1950); "ece" uses 15 equal bins of the top probability (Guo et al. 2017);
    "calibration" has the three before (None where not known) and after calibration;
    "majority_class" is the commonest label of this very split; "weighted" holds what `statistics`
    needs. "demented" tells demented from non-demented, None without `negative_class`: the score is
    one minus the probability of that class, above 0.5 is called demented. "baselines" has what
    always answering the commonest class and the 1-NN baseline reach, and the model's lead.
    "subject_level" has the same for people, compared by the mean of their probabilities; people
    with several labels have no single answer and are only counted ("left_out"). Raises ValueError
    where `negative_class` is none of the classes.
    """
    classes, labels_N, K = predictions.classes, predictions.labels_N, len(predictions.classes)
    if negative_class is not None and negative_class not in classes:
        raise ValueError(f"{negative_class} is none of the classes {classes}.")
    probabilities_NK = predictions.probabilities_NK.astype(np.float64)
    predicted_N = probabilities_NK.argmax(axis=1)
    counts_KK = confusion_matrix(labels_N, predicted_N, K)
    images_K = counts_KK.sum(axis=1)
    majority = int(images_K.argmax())
    units_N = units_of(predictions.subjects_N, len(labels_N))
    U = int(units_N.max()) + 1

    answers = answers_of_baselines(predictions, majority)
    matrices = {
        name: unit_matrices(labels_N, answer_N, units_N, K)
        for name, answer_N in {"model": predicted_N, "majority": answers["majority"]}.items()
    }
    sums = _per_image(predictions, probabilities_NK, negative_class)
    names, sums_UC = list(sums), np.zeros((U, len(sums)))
    np.add.at(sums_UC, units_N, np.stack(list(sums.values()), axis=1))
    onehot_NK = np.eye(K)[labels_N]

    blocks: list[dict[str, Floats]] = []
    for counts_RU in resamples(units_N, replicates, seed):
        confusions = {
            name: (counts_RU @ matrix_UKK.reshape(U, -1)).reshape(-1, K, K + 1)
            for name, matrix_UKK in matrices.items()
        }
        auc_RK = auc(counts_RU[:, units_N], onehot_NK, probabilities_NK)
        summed = dict(zip(names, (counts_RU @ sums_UC).T, strict=True))
        block = (
            rates(confusions["model"])
            | weighted(confusions["model"], "")
            # Always answering the split's commonest class, as SageMaker compares with.
            | weighted(confusions["majority"], "_best_constant_classifier")
            | {"auc": auc_RK, "macro_auc": mean_defined(auc_RK)}
            | _means(summed)
        )
        blocks.append(block)
    sampled = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    bins = reliability_bins(probabilities_NK.max(axis=1), predicted_N == labels_N)
    after = _calibration(sampled, "", bins)
    before, bins_before = _before_calibration(predictions, sampled)
    subjects_known = predictions.subjects_N is not None
    measured: dict[str, Any] = {
        "images": len(labels_N),
        "subjects": U if subjects_known else None,
        "resampled_by": "subject" if subjects_known else "image",
        **{name: estimate(sampled[name]) for name in ("accuracy", "macro_f1", "balanced_accuracy")},
        "per_class": {
            name: {rate: estimate(sampled[rate][:, k]) for rate in ("precision", "recall", "f1")}
            | {"images": int(images_K[k])}
            for k, name in enumerate(classes)
        },
        "confusion_matrix": _matrix(classes, counts_KK),
        "auc": {
            "macro": estimate(sampled["macro_auc"]),
            "per_class": {name: estimate(sampled["auc"][:, k]) for k, name in enumerate(classes)},
        },
        "demented": _demented(negative_class, classes, images_K, sampled),
        **after,
        "calibration": {"before": before, "after": after},
        "reliability": {"bins": bins, "before": bins_before},
        "majority_class": {
            "class": classes[majority],
            "accuracy": float(images_K[majority] / len(labels_N)),
        },
        "baselines": {"majority": None, "nearest_neighbour": None},
        "weighted": {name: spread(sampled[name]) for name in sampled if name in _STATISTICS},
    }
    for name, answer_N in answers.items():
        measured["baselines"][name] = compare_answers(
            labels_N, predicted_N, answer_N, units_N, K, seed=seed, replicates=replicates
        )
    measured["baselines"]["majority"]["class"] = classes[majority]
    measured["subject_level"] = _subject_level(predictions, negative_class, seed, replicates)
    return measured


def find_negative_class(classes: Sequence[str], wanted: str | None) -> str | None:
    """Return the class of healthy people: `wanted`, else the one whose name says so, else None.

    Non*, No Impairment, Normal, CN, Healthy and Control are such names. Where two classes have
    one, none is chosen.

    Raises:
        UserError: `wanted` is no class.
    """
    if wanted is not None:
        if wanted not in classes:
            raise UserError(
                f"negative_class is '{wanted}', which is not a class folder; the classes are"
                f" {', '.join(classes)}"
            )
        return wanted
    found = [name for name in classes if _HEALTHY.fullmatch(re.sub("[^a-z]", "", name.lower()))]
    return found[0] if len(found) == 1 else None


_STATISTICS = frozenset(
    f"{name}{suffix}"
    for name in ("accuracy", "weighted_recall", "weighted_precision")
    + ("weighted_f0_5", "weighted_f1", "weighted_f2")
    for suffix in ("", "_best_constant_classifier")
)


def statistics(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `measure` gave in the shape of SageMaker's ModelQuality statistics.

    The names are those of Model Monitor's multiclass metrics (SageMaker developer guide, "Model
    quality metrics"); "standard_deviation" is ours, over the bootstrap, not over five samples of
    80 % as there. The constant classifier always answers the commonest class.
    """
    classes = measured["confusion_matrix"]["classes"]
    matrix = {
        true: dict(zip(classes, row, strict=True))
        for true, row in zip(classes, measured["confusion_matrix"]["counts"], strict=True)
    }
    return {
        "multiclass_classification_metrics": {"confusion_matrix": matrix} | measured["weighted"]
    }


def _per_image(
    predictions: Predictions, probabilities_NK: Floats, negative_class: str | None
) -> dict[str, Floats]:
    """Return the terms (N,) of every figure that is a mean over images, or a ratio of such."""
    labels_N = predictions.labels_N
    terms = {"images": np.ones(len(labels_N))}
    terms["log_loss"], terms["brier"] = _scores(labels_N, probabilities_NK)
    if predictions.uncalibrated_NK is not None:
        uncalibrated_NK = predictions.uncalibrated_NK.astype(np.float64)
        terms["log_loss_before"], terms["brier_before"] = _scores(labels_N, uncalibrated_NK)
    if negative_class is not None:
        healthy = predictions.classes.index(negative_class)
        ill_N = labels_N != healthy
        called_ill_N = probabilities_NK[:, healthy] < 0.5
        terms |= {
            "ill": ill_N.astype(np.float64),
            "ill_found": (ill_N & called_ill_N).astype(np.float64),
            "well": (~ill_N).astype(np.float64),
            "well_found": (~ill_N & ~called_ill_N).astype(np.float64),
        }
    return terms


def _scores(labels_N: Ints, probabilities_NK: Floats) -> tuple[Floats, Floats]:
    """Return log loss and Brier score of each image."""
    rows_N = np.arange(len(labels_N))
    eps = np.finfo(np.float64).eps
    log_loss_N = -np.log(np.clip(probabilities_NK[rows_N, labels_N], eps, 1 - eps))
    onehot_NK = np.eye(probabilities_NK.shape[1])[labels_N]
    return log_loss_N, np.square(probabilities_NK - onehot_NK).sum(axis=1)


def _means(summed: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the figures (R,) made from the weighted sums of `_per_image`'s terms."""
    means = {
        name: summed[name] / summed["images"]
        for name in ("log_loss", "brier", "log_loss_before", "brier_before")
        if name in summed
    }
    if "ill" in summed:
        means["sensitivity"] = ratio(summed["ill_found"], summed["ill"])
        means["specificity"] = ratio(summed["well_found"], summed["well"])
    return means


def _before_calibration(
    predictions: Predictions, sampled: Mapping[str, Floats]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]] | None]:
    if predictions.uncalibrated_NK is None:
        return None, None
    uncalibrated_NK = predictions.uncalibrated_NK.astype(np.float64)
    right_N = uncalibrated_NK.argmax(axis=1) == predictions.labels_N
    bins = reliability_bins(uncalibrated_NK.max(axis=1), right_N)
    return _calibration(sampled, "_before", bins), bins


def _calibration(
    sampled: Mapping[str, Floats], suffix: str, bins: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    scores = {name: estimate(sampled[name + suffix]) for name in ("log_loss", "brier")}
    return {**scores, "ece": expected_calibration_error(bins)}


def _demented(
    negative_class: str | None,
    classes: tuple[str, ...],
    images_K: Ints,
    sampled: Mapping[str, Floats],
) -> dict[str, Any] | None:
    if negative_class is None:
        return None
    healthy = classes.index(negative_class)
    return {
        "negative_class": negative_class,
        "healthy": int(images_K[healthy]),
        "demented": int(images_K.sum() - images_K[healthy]),
        # One class against the rest is the same area as the rest against that class.
        "auc": estimate(sampled["auc"][:, healthy]),
        "sensitivity": estimate(sampled["sensitivity"]),
        "specificity": estimate(sampled["specificity"]),
    }


def _subject_level(
    predictions: Predictions, negative_class: str | None, seed: int, replicates: int
) -> dict[str, Any] | None:
    """Return the figures of subjects with one label each, None where there are none."""
    # A subject's mean is one prediction like any other, so the same function measures them.
    subjects = by_subject(predictions)
    if subjects is None:
        return None
    measured = measure(subjects, negative_class=negative_class, seed=seed, replicates=replicates)
    all_subjects = len(set(predictions.subjects_N or ()))
    kept = (*AVERAGES, "confusion_matrix", "auc", "demented", "majority_class", "baselines")
    return {"subjects": len(subjects.paths), "left_out": all_subjects - len(subjects.paths)} | {
        key: measured[key] for key in kept
    }


def _matrix(classes: tuple[str, ...], counts_KK: Ints) -> dict[str, Any]:
    return {
        "classes": list(classes),
        "counts": counts_KK.tolist(),
        "rows": "true",
        "columns": "predicted",
    }
