"""Measure predictions on images nobody trained on, with intervals that respect who is on them.

Every figure is a function of image weights: all ones give the value, resampled weights give the
interval. Where the people are known whole people are resampled (cluster bootstrap, Field and
Welsh 2007), since a person's slices look alike and are not independent; otherwise single images.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alexmri.evaluation.calibration import expected_calibration_error, reliability_bins

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BLOCK = 1_000_000  # weights held at once (8 MB), however many images there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model said about N labelled images of K classes.

    `probabilities_NK` are calibrated and sum to 1 along each row; `labels_N` index `classes`;
    `subjects_N` names the person on each image, None where people are unknown. Raises ValueError
    where the parts do not fit together.
    """

    classes: tuple[str, ...]
    labels_N: Ints
    probabilities_NK: Floats
    subjects_N: tuple[str, ...] | None
    paths: tuple[str, ...]

    def __post_init__(self) -> None:
        N, K = len(self.labels_N), len(self.classes)
        if N == 0 or self.labels_N.shape != (N,) or self.probabilities_NK.shape != (N, K):
            raise ValueError(
                f"Expected labels (N,) and probabilities (N, {K}) with N > 0, got "
                f"{self.labels_N.shape} and {self.probabilities_NK.shape}."
            )
        if len(self.paths) != N or (self.subjects_N is not None and len(self.subjects_N) != N):
            raise ValueError(f"Expected {N} paths and {N} subjects (or None for the subjects).")
        if self.labels_N.min() < 0 or self.labels_N.max() >= K:
            raise ValueError(f"Labels must lie in 0..{K - 1}.")
        # 1e-3 admits half precision; written so that NaN fails too.
        sums_N = self.probabilities_NK.sum(axis=1, dtype=np.float64)
        if not (self.probabilities_NK.min() >= 0 and np.abs(sums_N - 1).max() < 1e-3):
            raise ValueError("Each row of probabilities must be non-negative and sum to 1.")


def confusion_matrix(labels_N: Ints, predicted_N: Ints, K: int) -> Ints:
    """Return counts (K, K), rows true and columns predicted; both inputs lie in 0..K-1."""
    return np.bincount(labels_N * K + predicted_N, minlength=K * K).reshape(K, K)


def macro_f1(confusion_KK: Ints) -> float:
    """Return the mean F1, in 0..1, over the classes that occur in labels or predictions.

    This is scikit-learn's `f1_score(average="macro")`. Raises ValueError for an empty matrix.
    """
    if confusion_KK.sum() == 0:
        raise ValueError("Macro F1 of no images is undefined.")
    return float(_rates(confusion_KK[None].astype(np.float64))["macro_f1"][0])


def measure(predictions: Predictions, *, seed: int = 0, replicates: int = 1000) -> dict[str, Any]:
    """Return every figure of one split, ready for JSON: undefined ones are None, never NaN.

    Figures are {"value", "ci95": [low, high]}: the 2.5th and 97.5th percentile over `replicates`
    resamples, "ci95" None where there is one person or image only. Three things to know when
    reading them. An interval of zero width at 0 or 1 says that no error was seen, not that none
    can happen. Percentile intervals are somewhat too narrow below about 30 people. Macro F1
    averages the classes that occur in labels or predictions, balanced accuracy and macro AUC those
    that occur in the labels, as scikit-learn does; a class missing from a resample is left out of
    that resample's average too.

    "log_loss" clips probabilities at 2.2e-16 (float64's epsilon); "brier" is the sum over classes
    (0..2, Brier 1950); "ece" uses 15 equal bins of the top probability (Guo et al. 2017);
    "majority_class" is the commonest label of this very split; "weighted" holds what `statistics`
    needs. "subject_level" compares the mean of a person's probabilities with their label; people
    with several labels have no single answer and are only counted ("left_out").
    """
    classes, labels_N, K = predictions.classes, predictions.labels_N, len(predictions.classes)
    probabilities_NK = predictions.probabilities_NK.astype(np.float64)
    predicted_N = probabilities_NK.argmax(axis=1)
    counts_KK = confusion_matrix(labels_N, predicted_N, K)
    images_K = counts_KK.sum(axis=1)
    majority = int(images_K.argmax())

    subjects, units_N = None, np.arange(len(labels_N))
    if predictions.subjects_N is not None:
        names_S, units_N = np.unique(np.array(predictions.subjects_N), return_inverse=True)
        subjects = len(names_S)

    onehot_NK = np.eye(K)[labels_N]
    true_probability_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    eps = np.finfo(np.float64).eps
    log_loss_N = -np.log(np.clip(true_probability_N, eps, 1 - eps))
    brier_N = np.square(probabilities_NK - onehot_NK).sum(axis=1)

    blocks = []
    for weights_RN in _resamples(units_N, replicates, seed):
        total_R = weights_RN.sum(axis=1)
        confusions_RKK = _confusions(weights_RN, labels_N, predicted_N, K)
        # Always answering the split's commonest class, as SageMaker compares with.
        constant_RKK = np.zeros_like(confusions_RKK)
        constant_RKK[:, :, majority] = confusions_RKK.sum(axis=2)
        auc_RK = _auc(weights_RN, onehot_NK, probabilities_NK)
        blocks.append(
            _rates(confusions_RKK)
            | _weighted(confusions_RKK, "")
            | _weighted(constant_RKK, "_best_constant_classifier")
            | {"auc": auc_RK, "macro_auc": _mean_defined(auc_RK)}
            | {"log_loss": weights_RN @ log_loss_N / total_R}
            | {"brier": weights_RN @ brier_N / total_R}
        )
    sampled = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    bins = reliability_bins(probabilities_NK.max(axis=1), predicted_N == labels_N)
    return {
        "images": len(labels_N),
        "subjects": subjects,
        "resampled_by": "image" if subjects is None else "subject",
        "accuracy": _estimate(sampled["accuracy"]),
        "macro_f1": _estimate(sampled["macro_f1"]),
        "balanced_accuracy": _estimate(sampled["balanced_accuracy"]),
        "per_class": {
            name: {rate: _estimate(sampled[rate][:, k]) for rate in ("precision", "recall", "f1")}
            | {"images": int(images_K[k])}
            for k, name in enumerate(classes)
        },
        "confusion_matrix": _matrix(classes, counts_KK),
        "auc": {
            "macro": _estimate(sampled["macro_auc"]),
            "per_class": {name: _estimate(sampled["auc"][:, k]) for k, name in enumerate(classes)},
        },
        "log_loss": _estimate(sampled["log_loss"]),
        "brier": _estimate(sampled["brier"]),
        "ece": expected_calibration_error(bins),
        "reliability": {"bins": bins},
        "majority_class": {
            "class": classes[majority],
            "accuracy": float(images_K[majority] / len(labels_N)),
        },
        "subject_level": _subject_level(predictions, seed=seed, replicates=replicates),
        "weighted": {name: _spread(sampled[name]) for name in sampled if name in _STATISTICS},
    }


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


def _resamples(units_N: Ints, replicates: int, seed: int) -> Iterator[Floats]:
    """Yield blocks of image weights (R, N): first all ones, then how often each unit was drawn."""
    yield np.ones((1, len(units_N)))
    units = int(units_N.max()) + 1
    if units == 1:  # resampling one person or image says nothing about others
        return
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    size = max(1, _BLOCK // len(units_N))
    for start in range(0, replicates, size):
        R = min(size, replicates - start)
        drawn_RU = rng.integers(0, units, size=(R, units)) + units * np.arange(R)[:, None]
        counts_RU = np.bincount(drawn_RU.ravel(), minlength=R * units).reshape(R, units)
        yield counts_RU.astype(np.float64)[:, units_N]


def _confusions(weights_RN: Floats, labels_N: Ints, predicted_N: Ints, K: int) -> Floats:
    """Return the weighted confusion matrices (R, K, K)."""
    cells_NC = np.eye(K * K)[labels_N * K + predicted_N]
    confusions_RC: Floats = weights_RN @ cells_NC
    return confusions_RC.reshape(-1, K, K)


def _rates(confusions_RKK: Floats) -> dict[str, Floats]:
    """Return precision, recall, F1 (R, K) and their averages (R,); NaN where undefined."""
    hits_RK = np.diagonal(confusions_RKK, axis1=1, axis2=2)
    true_RK, predicted_RK = confusions_RKK.sum(axis=2), confusions_RKK.sum(axis=1)
    recall_RK = _ratio(hits_RK, true_RK)
    f1_RK = _ratio(2 * hits_RK, true_RK + predicted_RK)
    return {
        "accuracy": hits_RK.sum(axis=1) / true_RK.sum(axis=1),
        "precision": _ratio(hits_RK, predicted_RK),
        "recall": recall_RK,
        "f1": f1_RK,
        "macro_f1": _mean_defined(f1_RK),
        "balanced_accuracy": _mean_defined(recall_RK),
    }


def _weighted(confusions_RKK: Floats, suffix: str) -> dict[str, Floats]:
    """Return SageMaker's averages (R,), weighted by true counts; undefined parts count as 0."""
    hits_RK = np.diagonal(confusions_RKK, axis1=1, axis2=2)
    true_RK, predicted_RK = confusions_RKK.sum(axis=2), confusions_RKK.sum(axis=1)
    parts = {
        "weighted_recall": _ratio(hits_RK, true_RK),
        "weighted_precision": _ratio(hits_RK, predicted_RK),
    }
    for name, beta in (("f0_5", 0.5), ("f1", 1.0), ("f2", 2.0)):
        parts[f"weighted_{name}"] = _ratio(
            (1 + beta**2) * hits_RK, beta**2 * true_RK + predicted_RK
        )
    share_RK = true_RK / true_RK.sum(axis=1, keepdims=True)
    return {"accuracy" + suffix: hits_RK.sum(axis=1) / true_RK.sum(axis=1)} | {
        name + suffix: (share_RK * np.nan_to_num(part_RK)).sum(axis=1)
        for name, part_RK in parts.items()
    }


def _auc(weights_RN: Floats, onehot_NK: Floats, probabilities_NK: Floats) -> Floats:
    """Return each class's area under the ROC curve against the rest (R, K); ties count half."""
    areas = []
    for scores_N, positive_N in zip(probabilities_NK.T, onehot_NK.T, strict=True):
        order_N = scores_N.argsort(kind="stable")
        _, starts_G = np.unique(scores_N[order_N], return_index=True)
        sorted_RN = weights_RN[:, order_N]
        all_RG = np.add.reduceat(sorted_RN, starts_G, axis=1)
        positive_RG = np.add.reduceat(sorted_RN * positive_N[order_N], starts_G, axis=1)
        negative_RG = all_RG - positive_RG
        below_RG = negative_RG.cumsum(axis=1) - negative_RG / 2
        pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
        areas.append(_ratio((positive_RG * below_RG).sum(axis=1), pairs_R))
    return np.stack(areas, axis=1)


def _subject_level(
    predictions: Predictions, *, seed: int, replicates: int
) -> dict[str, Any] | None:
    """Return the figures of people with one label each, None where there are none."""
    if predictions.subjects_N is None:
        return None
    names_S, subjects_N = np.unique(np.array(predictions.subjects_N), return_inverse=True)
    K = len(predictions.classes)
    labels_SK, sums_SK = np.zeros((2, len(names_S), K))
    np.add.at(labels_SK, (subjects_N, predictions.labels_N), 1)
    np.add.at(sums_SK, subjects_N, predictions.probabilities_NK)
    clear_S = (labels_SK > 0).sum(axis=1) == 1
    if not clear_S.any():
        return None
    # A person's mean is one prediction like any other, so the same function measures them.
    means_SK = sums_SK / labels_SK.sum(axis=1, keepdims=True)
    people = Predictions(
        classes=predictions.classes,
        labels_N=labels_SK[clear_S].argmax(axis=1),
        probabilities_NK=means_SK[clear_S],
        subjects_N=None,
        paths=tuple(names_S[clear_S].tolist()),
    )
    measured = measure(people, seed=seed, replicates=replicates)
    return {"subjects": int(clear_S.sum()), "left_out": int((~clear_S).sum())} | {
        key: measured[key] for key in ("accuracy", "macro_f1", "confusion_matrix")
    }


def _matrix(classes: tuple[str, ...], counts_KK: Ints) -> dict[str, Any]:
    return {
        "classes": list(classes),
        "counts": counts_KK.tolist(),
        "rows": "true",
        "columns": "predicted",
    }


def _estimate(sampled_R: Floats) -> dict[str, Any] | None:
    """Return the value (first) with its interval (the rest), None where the value is undefined."""
    if np.isnan(sampled_R[0]):
        return None
    resampled_R = sampled_R[1:][~np.isnan(sampled_R[1:])]
    interval = np.percentile(resampled_R, [2.5, 97.5]).tolist() if resampled_R.size else None
    return {"value": float(sampled_R[0]), "ci95": interval}


def _spread(sampled_R: Floats) -> dict[str, float | None]:
    spread = float(sampled_R[1:].std(ddof=1)) if len(sampled_R) > 2 else None
    return {"value": float(sampled_R[0]), "standard_deviation": spread}


def _ratio(above: Floats, below: Floats) -> Floats:
    """Divide, with NaN (and no warning) where the denominator is 0."""
    quotient: Floats = np.full(below.shape, np.nan)
    return np.divide(above, below, out=quotient, where=below > 0)


def _mean_defined(values_RK: Floats) -> Floats:
    """Return each row's mean over what is not NaN, NaN where nothing is."""
    defined_RK = ~np.isnan(values_RK)
    return _ratio(np.where(defined_RK, values_RK, 0).sum(axis=1), defined_RK.sum(axis=1))
