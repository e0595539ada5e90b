"""Draw the report's figures as PNG bytes: same numbers in, same bytes out.

Only matplotlib's objects and the Agg canvas are used, never pyplot, which keeps global figures.
Figures are 900 pixels wide and drawn large, so that they stay legible on a telephone.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import auc, roc_curve

from alexmri.evaluation.predictions import Predictions

# Okabe and Ito 2008: told apart with every common kind of colour blindness. Yellow is left out,
# it is too light for lines; line styles tell further classes apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
STYLES = ("-", "--", "-.", ":")
GREY = "#767676"
WIDTH_INCHES, DPI = 6.0, 150


def measured_plots(
    measured: Mapping[str, Any], predictions: Predictions, title: str
) -> dict[str, bytes]:
    """Draw, by name, what `measured`, the result of `measure(predictions)`, holds."""
    matrix = measured["confusion_matrix"]
    return {
        "confusion": confusion(matrix["counts"], matrix["classes"], title),
        "reliability": reliability(measured["reliability"]["bins"]),
        "roc": roc(predictions),
    }


def curves(history: Sequence[Mapping[str, Any]], *, best_epoch: int | None = None) -> bytes:
    """Draw losses, validation accuracy and macro F1 over the epochs.

    `history` holds one row per epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy,
    val_macro_f1. The epoch whose weights were kept is marked: `best_epoch`, or the first with the
    highest validation macro F1. Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("There are no epochs to draw.")
    if best_epoch is None:
        best_epoch = max(history, key=lambda row: row["val_macro_f1"])["epoch"]
    figure = Figure(figsize=(WIDTH_INCHES, 5.6), dpi=DPI, layout="constrained")
    losses, scores = figure.subplots(2, 1, sharex=True)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(history) < 3 else ""  # a line through one point is invisible

    def line(axes: Axes, key: str, label: str, colour: str, style: str) -> None:
        values = [row[key] for row in history]
        axes.plot(epochs, values, color=colour, linestyle=style, marker=marker, label=label)

    line(losses, "train_loss", "training", BLUE, "-")
    line(losses, "val_loss", "validation", VERMILION, "--")
    losses.set_ylabel("loss")
    line(scores, "train_accuracy", "training accuracy", BLUE, "-")
    line(scores, "val_accuracy", "validation accuracy", VERMILION, "--")
    line(scores, "val_macro_f1", "validation macro F1", GREEN, "-.")
    scores.set(xlabel="epoch", ylabel="score", ylim=(0, 1.02))
    scores.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, scores):
        axes.axvline(best_epoch, color=GREY, linewidth=1, linestyle=":", label="epoch kept")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def confusion(counts_KK: npt.ArrayLike, classes: Sequence[str], title: str) -> bytes:
    """Draw a confusion matrix (rows true): counts in words, shares of each row as shade."""
    counts_KK = np.asarray(counts_KK)
    K = len(classes)
    totals_K1 = counts_KK.sum(axis=1, keepdims=True)
    shares_KK = counts_KK / np.maximum(totals_K1, 1)
    figure = Figure(figsize=(WIDTH_INCHES, 2.2 + 0.75 * K), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares_KK, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 11 if K <= 6 else 7
    for true, predicted in np.ndindex(K, K):
        share = shares_KK[true, predicted]
        percent = f"\n{share:.0%}" if totals_K1[true, 0] else ""
        axes.text(
            predicted,
            true,
            f"{counts_KK[true, predicted]}{percent}",
            ha="center",
            va="center",
            fontsize=size,
            color="white" if share > 0.7 else "black",
        )
    names = [_plain(name) for name in classes]
    axes.set_xticks(range(K), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(K), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(_plain(title, 60), fontsize=12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def reliability(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw how often the model was right against how sure it was, with the images in each bin.

    `bins` are the rows of `measure(...)["reliability"]["bins"]`; empty ones are left blank.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), dpi=DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [row for row in bins if row["count"]]
    for axes, key, rows in ((upper, "accuracy", filled), (lower, "count", bins)):
        axes.bar(
            [row["lower"] for row in rows],
            [row[key] for row in rows],
            width=[row["upper"] - row["lower"] for row in rows],
            align="edge",
            color=SKY,
            edgecolor="white",
        )
    confidence = [row["confidence"] for row in filled]
    accuracy = [row["accuracy"] for row in filled]
    upper.plot(confidence, accuracy, "o", color=BLUE, label="bin mean")
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1.03), ylabel="share that was right")
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.set(xlabel="probability given to the answer", ylabel="images")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return _png(figure)


def roc(predictions: Predictions) -> bytes:
    """Draw each class's ROC curve against the rest; classes without both sides are left out."""
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    handles, names = [], []
    looks = zip(cycle(COLOURS), cycle(STYLES), strict=False)
    for k, (name, (colour, style)) in enumerate(zip(predictions.classes, looks, strict=False)):
        positive_N = predictions.labels_N == k
        if positive_N.all() or not positive_N.any():
            continue
        false_T, true_T, _ = roc_curve(positive_N, predictions.probabilities_NK[:, k])
        handles += axes.plot(false_T, true_T, color=colour, linestyle=style, linewidth=1.9)
        names.append(f"{_plain(name)}  (AUC {auc(false_T, true_T):.3f})")
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(alpha=0.25)
    if handles:
        axes.legend(handles, names, frameon=False, fontsize=9, loc="lower right")
    return _png(figure)


def _plain(name: str, longest: int = 24) -> str:
    """Shorten a folder's name, and keep matplotlib from reading $...$ in it as mathematics."""
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    return short.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the software's name a new matplotlib changes the bytes only where it draws otherwise.
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A folder name in a script the bundled font lacks becomes boxes; the report's tables show
        # it properly, so it is not worth a warning per letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
