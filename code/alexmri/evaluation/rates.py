"""Rates of weighted confusion matrices and areas under weighted ROC curves, many at once."""

import numpy as np

from alexmri.evaluation.predictions import Floats, Ints


def confusion_matrix(labels_N: Ints, predicted_N: Ints, K: int) -> Ints:
    """Return counts (K, K), rows true and columns predicted; both inputs lie in 0..K-1."""
    return np.bincount(labels_N * K + predicted_N, minlength=K * K).reshape(K, K)


def unit_matrices(labels_N: Ints, answers_N: Ints, units_N: Ints, K: int) -> Floats:
    """Return each unit's confusion matrix (U, K, K + 1); the last column is for `OTHER`.

    Labels (N,) lie in 0..K-1, answers (N,) too or are `OTHER`, and units (N,) in 0..U-1.
    """
    U = int(units_N.max()) + 1
    column_N = np.where(answers_N < 0, K, answers_N)
    cells_N = (units_N * K + labels_N) * (K + 1) + column_N
    counts = np.bincount(cells_N, minlength=U * K * (K + 1))
    return counts.astype(np.float64).reshape(U, K, K + 1)


def macro_f1(confusion_KK: Ints) -> float:
    """Return the mean F1, in 0..1, over the classes that occur in labels or predictions.

    This is scikit-learn's `f1_score(average="macro")`. Raises ValueError for an empty matrix.
    """
    if confusion_KK.sum() == 0:
        raise ValueError("Macro F1 of no images is undefined.")
    return float(rates(confusion_KK[None].astype(np.float64))["macro_f1"][0])


def rates(confusions_RKK: Floats) -> dict[str, Floats]:
    """Return precision, recall, F1 (R, K) and their averages (R,); NaN where undefined.

    A column more than rows stands for answers that are none of the classes.
    """
    K = confusions_RKK.shape[1]
    hits_RK = np.diagonal(confusions_RKK, axis1=1, axis2=2)
    true_RK, predicted_RK = confusions_RKK.sum(axis=2), confusions_RKK.sum(axis=1)[:, :K]
    recall_RK = ratio(hits_RK, true_RK)
    f1_RK = ratio(2 * hits_RK, true_RK + predicted_RK)
    return {
        "accuracy": hits_RK.sum(axis=1) / true_RK.sum(axis=1),
        "precision": ratio(hits_RK, predicted_RK),
        "recall": recall_RK,
        "f1": f1_RK,
        "macro_f1": mean_defined(f1_RK),
        "balanced_accuracy": mean_defined(recall_RK),
    }


def weighted(confusions_RKK: Floats, suffix: str) -> dict[str, Floats]:
    """Return SageMaker's averages (R,), weighted by true counts; undefined parts count as 0."""
    K = confusions_RKK.shape[1]
    hits_RK = np.diagonal(confusions_RKK, axis1=1, axis2=2)
    true_RK, predicted_RK = confusions_RKK.sum(axis=2), confusions_RKK.sum(axis=1)[:, :K]
    parts = {
        "weighted_recall": ratio(hits_RK, true_RK),
        "weighted_precision": ratio(hits_RK, predicted_RK),
    }
    for name, beta in (("f0_5", 0.5), ("f1", 1.0), ("f2", 2.0)):
        parts[f"weighted_{name}"] = ratio((1 + beta**2) * hits_RK, beta**2 * true_RK + predicted_RK)
    share_RK = true_RK / true_RK.sum(axis=1, keepdims=True)
    return {"accuracy" + suffix: hits_RK.sum(axis=1) / true_RK.sum(axis=1)} | {
        name + suffix: (share_RK * np.nan_to_num(part_RK)).sum(axis=1)
        for name, part_RK in parts.items()
    }


def auc(weights_RN: Floats, onehot_NK: Floats, probabilities_NK: Floats) -> Floats:
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
        areas.append(ratio((positive_RG * below_RG).sum(axis=1), pairs_R))
    return np.stack(areas, axis=1)


def ratio(above: Floats, below: Floats) -> Floats:
    """Divide, with NaN (and no warning) where the denominator is 0."""
    quotient: Floats = np.full(below.shape, np.nan)
    return np.divide(above, below, out=quotient, where=below > 0)


def mean_defined(values_RK: Floats) -> Floats:
    """Return each row's mean over what is not NaN, NaN where nothing is."""
    defined_RK = ~np.isnan(values_RK)
    return ratio(np.where(defined_RK, values_RK, 0).sum(axis=1), defined_RK.sum(axis=1))
