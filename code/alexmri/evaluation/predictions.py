"""What a model said about labelled images; how that is pooled, narrowed, averaged by subject."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)

OTHER = -1  # an answer of the 1-NN baseline that is none of the classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a model said about N labelled images of K classes.

    `probabilities_NK` are calibrated and sum to 1 along each row; `labels_N` index `classes`;
    `subjects_N` names the subject on each image, None where subjects are unknown.
    `uncalibrated_NK` are the probabilities before calibration, and `nearest_N` the label of the
    most similar training image (`OTHER` where that is none of the classes): None where not known.
    Raises ValueError where the parts do not fit together.
    """

    classes: tuple[str, ...]
    labels_N: Ints
    probabilities_NK: Floats
    subjects_N: tuple[str, ...] | None
    paths: tuple[str, ...]
    uncalibrated_NK: Floats | None = None
    nearest_N: Ints | None = None

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
        _check_probabilities(self.probabilities_NK)
        if self.uncalibrated_NK is not None:
            if self.uncalibrated_NK.shape != (N, K):
                raise ValueError(f"Expected uncalibrated probabilities of shape ({N}, {K}).")
            _check_probabilities(self.uncalibrated_NK)
        nearest_N = self.nearest_N
        if nearest_N is not None and (
            nearest_N.shape != (N,) or nearest_N.min() < OTHER or nearest_N.max() >= K
        ):
            raise ValueError(f"Expected {N} answers of the 1-NN baseline in {OTHER}..{K - 1}.")


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several models, each on images of its own, as those of one.

    For the folds of a cross-validation: every image once, from the fold that had it in its test
    split. What one part does not know the whole does not know. Raises ValueError where classes
    differ, or for no parts.
    """
    if not parts or any(part.classes != parts[0].classes for part in parts):
        raise ValueError("Expected one or more predictions of the same classes.")
    subjects = [part.subjects_N for part in parts]
    uncalibrated = [part.uncalibrated_NK for part in parts]
    nearest = [part.nearest_N for part in parts]
    return Predictions(
        classes=parts[0].classes,
        labels_N=np.concatenate([part.labels_N for part in parts]),
        probabilities_NK=np.concatenate([part.probabilities_NK for part in parts]),
        subjects_N=None if None in subjects else tuple(s for some in subjects for s in some or ()),
        paths=tuple(path for part in parts for path in part.paths),
        uncalibrated_NK=_joined(uncalibrated),
        nearest_N=_joined(nearest),
    )


def restrict(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    """Return the predictions on the images of some classes, asked between these alone.

    Images of other classes are left out, and each row is divided by its sum over `classes`: the
    answer is the likeliest of them. So `measure(restrict(p, classes))["macro_f1"]` is a macro F1
    that does not hang on a class of two people. The 1-NN baseline has no second choice: where it
    answers another class that stays wrong. Raises ValueError for an unknown class and where no
    image is left.
    """
    unknown = set(classes) - set(predictions.classes)
    if unknown:
        raise ValueError(f"{min(unknown)} is none of the classes {predictions.classes}.")
    kept = [k for k, name in enumerate(predictions.classes) if name in classes]
    new_K = np.full(len(predictions.classes) + 1, OTHER)  # the last is for OTHER itself
    new_K[kept] = np.arange(len(kept))
    of_them = at_rows(predictions, np.flatnonzero(np.isin(predictions.labels_N, kept)))
    nearest_N, uncalibrated_NK = of_them.nearest_N, of_them.uncalibrated_NK
    return replace(
        of_them,
        classes=tuple(predictions.classes[k] for k in kept),
        labels_N=new_K[of_them.labels_N],
        probabilities_NK=_shares(of_them.probabilities_NK[:, kept]),
        uncalibrated_NK=None if uncalibrated_NK is None else _shares(uncalibrated_NK[:, kept]),
        nearest_N=None if nearest_N is None else new_K[nearest_N],
    )


def at_rows(predictions: Predictions, rows_M: Ints) -> Predictions:
    """Return the predictions on some of the images; ValueError for none."""
    subjects, nearest_N = predictions.subjects_N, predictions.nearest_N
    uncalibrated_NK = predictions.uncalibrated_NK
    return replace(
        predictions,
        labels_N=predictions.labels_N[rows_M],
        probabilities_NK=predictions.probabilities_NK[rows_M],
        subjects_N=None if subjects is None else tuple(subjects[row] for row in rows_M.tolist()),
        paths=tuple(predictions.paths[row] for row in rows_M.tolist()),
        uncalibrated_NK=None if uncalibrated_NK is None else uncalibrated_NK[rows_M],
        nearest_N=None if nearest_N is None else nearest_N[rows_M],
    )


def by_subject(predictions: Predictions) -> Predictions | None:
    """Return one row for each subject with one label: the mean of the calibrated probabilities.

    The 1-NN baseline's answer for a subject is its commonest one (the first of equals). Those with
    several labels have no single answer and are left out. None where nobody is left, or known.
    """
    if predictions.subjects_N is None:
        return None
    names_S, subjects_N = np.unique(np.array(predictions.subjects_N), return_inverse=True)
    K = len(predictions.classes)
    labels_SK, sums_SK, votes_SK = np.zeros((3, len(names_S), K))
    np.add.at(labels_SK, (subjects_N, predictions.labels_N), 1)
    np.add.at(sums_SK, subjects_N, predictions.probabilities_NK)
    clear_S = (labels_SK > 0).sum(axis=1) == 1
    if not clear_S.any():
        return None
    nearest_S = None
    if predictions.nearest_N is not None:
        voted_N = predictions.nearest_N != OTHER
        np.add.at(votes_SK, (subjects_N[voted_N], predictions.nearest_N[voted_N]), 1)
        nearest_S = np.where(votes_SK.any(axis=1), votes_SK.argmax(axis=1), OTHER)[clear_S]
    return Predictions(
        classes=predictions.classes,
        labels_N=labels_SK[clear_S].argmax(axis=1),
        probabilities_NK=(sums_SK / labels_SK.sum(axis=1, keepdims=True))[clear_S],
        subjects_N=None,
        paths=tuple(names_S[clear_S].tolist()),
        nearest_N=nearest_S,
    )


def _check_probabilities(probabilities_NK: Floats) -> None:
    # 1e-3 admits half precision; written so that NaN fails too.
    sums_N = probabilities_NK.sum(axis=1, dtype=np.float64)
    if not (probabilities_NK.min() >= 0 and np.abs(sums_N - 1).max() < 1e-3):
        raise ValueError("Each row of probabilities must be non-negative and sum to 1.")


def _joined(parts: Sequence[npt.NDArray[Number] | None]) -> npt.NDArray[Number] | None:
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _shares(part_NK: Floats) -> Floats:
    """Divide each row by its sum; equal shares where nothing is left to divide."""
    sums_N1 = part_NK.sum(axis=1, keepdims=True, dtype=np.float64)
    equal = 1 / part_NK.shape[1]
    return np.where(sums_N1 > 0, part_NK / np.where(sums_N1 > 0, sums_N1, 1), equal)
