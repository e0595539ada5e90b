"""Measure an epoch on the validation split, and tell which epoch was the best."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alexmri.evaluation.calibration import negative_log_likelihood
from alexmri.evaluation.rates import confusion_matrix, macro_f1


def best_epoch(history: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return the epoch with the best validation metric; ties go to the lower loss, then first."""

    def merit(row: Mapping[str, float]) -> tuple[float, float]:
        value = -row["val_loss"] if metric == "loss" else row[f"val_{metric}"]
        return value, -row["val_loss"]

    return int(max(history, key=merit)["epoch"]) if history else 0


def validation_metrics(
    logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> dict[str, float]:
    """Return what an epoch's metrics say of the validation split."""
    predicted_N = logits_NK.argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, predicted_N, logits_NK.shape[1])
    return {
        "val_loss": negative_log_likelihood(logits_NK, labels_N),
        "val_accuracy": float((predicted_N == labels_N).mean()),
        "val_macro_f1": macro_f1(confusion_KK),
    }
