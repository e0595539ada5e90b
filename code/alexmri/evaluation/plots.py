"""Draw the report's figures as PNG bytes: same numbers in, same bytes out.

scikit-learn's displays draw on figures made here with the Agg canvas. They import pyplot, but never
use it to make a figure, so no backend is chosen and no figure is kept.
Figures are 900 pixels wide and drawn large, so that they stay legible on a telephone.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from alexmri.evaluation.predictions import Predictions, by_subject

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
    matrix, subjects = measured["confusion_matrix"], measured["subject_level"]
    drawn = {
        "confusion": confusion(matrix["counts"], matrix["classes"], f"{title}: slices"),
        "reliability": reliability(
            measured["reliability"]["bins"], measured["reliability"]["before"]
        ),
        "roc": roc(predictions),
        "precision_recall": precision_recall(predictions),
    }
    if subjects:
        matrix = subjects["confusion_matrix"]
        drawn["confusion_subjects"] = confusion(
            matrix["counts"], matrix["classes"], f"{title}: people"
        )
    if measured["demented"]:
        drawn["roc_demented"] = roc_demented(predictions, measured["demented"]["negative_class"])
    return drawn


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
    names = [_plain(name) for name in classes]
    drawn = ConfusionMatrixDisplay(shares_KK, display_labels=names).plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        im_kw={"vmin": 0, "vmax": 1, "aspect": "auto"},
        text_kw={"fontsize": 11 if K <= 6 else 7},
    )
    for cell in np.ndindex(K, K):
        percent = f"\n{shares_KK[cell]:.0%}" if totals_K1[cell[0], 0] else ""
        drawn.text_[cell].set_text(f"{counts_KK[cell]}{percent}")
        drawn.text_[cell].set_color("white" if shares_KK[cell] > 0.7 else "black")
    axes.set_xticks(range(K), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(_plain(title, 60), fontsize=12)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def reliability(
    bins: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] | None = None
) -> bytes:
    """Draw how often the model was right against how sure it was, with the images in each bin.

    `bins` are the rows of `measure(...)["reliability"]["bins"]`, after calibration, and `before`
    those before it; empty ones are left blank.
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
    for curve, label, look in (
        (bins, "calibrated", {"color": BLUE, "linestyle": "", "marker": "o"}),
        (
            before or (),
            "before calibration",
            {"color": VERMILION, "linestyle": ":", "mfc": "white"},
        ),
    ):
        filled = [row for row in curve if row["count"]]
        confidence = [row["confidence"] for row in filled]
        accuracy = [row["accuracy"] for row in filled]
        if filled:
            CalibrationDisplay(accuracy, confidence, confidence).plot(ax=upper, name=label, **look)
    upper.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="", ylabel="share that was right")
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.set(xlabel="probability given to the answer", ylabel="images")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return _png(figure)


def roc(predictions: Predictions) -> bytes:
    """Draw each class's ROC curve against the rest; classes without both sides are left out."""
    figure, axes = _square()
    curves = []
    for name, positive_N, scores_N, look in _one_against_rest(predictions):
        drawn = RocCurveDisplay.from_predictions(positive_N, scores_N, ax=axes)
        drawn.line_.set(**look)
        curves.append((drawn.line_, f"{name}  (AUC {drawn.roc_auc:.3f})"))
    _finish(figure, axes, curves, "false positive rate", "true positive rate", diagonal=True)
    return _png(figure)


def precision_recall(predictions: Predictions) -> bytes:
    """Draw each class's precision against its recall; classes without both sides are left out."""
    figure, axes = _square()
    curves = []
    for name, positive_N, scores_N, look in _one_against_rest(predictions):
        drawn = PrecisionRecallDisplay.from_predictions(positive_N, scores_N, ax=axes)
        drawn.line_.set(**look)
        area, chance = drawn.average_precision, positive_N.mean()
        curves.append((drawn.line_, f"{name}  (AP {area:.3f}; by chance {chance:.3f})"))
    found, right = (
        "recall: share of the class that is found",
        "precision: share of the answers that is right",
    )
    _finish(figure, axes, curves, f"recall: {found}", f"precision: {right}", diagonal=False)
    return _png(figure)


def roc_demented(predictions: Predictions, negative_class: str) -> bytes:
    """Draw the ROC curve of demented against non-demented, for slices and for people."""
    figure, axes = _square()
    healthy = predictions.classes.index(negative_class)
    curves = []
    for name, answers, colour, style in (
        ("slices", predictions, BLUE, "-"),
        ("people", by_subject(predictions), VERMILION, "--"),
    ):
        if answers is None:
            continue
        ill_N = answers.labels_N != healthy
        if ill_N.all() or not ill_N.any():
            continue
        scores_N = 1 - answers.probabilities_NK[:, healthy]
        drawn = RocCurveDisplay.from_predictions(ill_N, scores_N, ax=axes)
        drawn.line_.set(color=colour, linestyle=style, linewidth=1.9)
        curves.append((drawn.line_, f"{len(ill_N)} {name}  (AUC {drawn.roc_auc:.3f})"))
    _finish(figure, axes, curves, "healthy taken for demented", "demented found", diagonal=True)
    return _png(figure)


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_INCHES, 5.2), dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _finish(
    figure: Figure,
    axes: Axes,
    curves: Sequence[tuple[Any, str]],
    x: str,
    y: str,
    *,
    diagonal: bool,
) -> None:
    """Name axes and curves; by hand, since matplotlib leaves out a label that begins with _."""
    if diagonal:
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)
    if curves:
        lines, labels = zip(*curves, strict=True)
        look: dict[str, Any] = {"framealpha": 0.8, "edgecolor": "none", "fontsize": 9}
        if diagonal:
            axes.legend(lines, labels, loc="lower right", **look)
        else:  # curves run anywhere, so nothing may cover them
            if (within := axes.get_legend()) is not None:
                within.remove()
            figure.set_figheight(figure.get_figheight() + 0.2 * len(lines))
            figure.legend(lines, labels, loc="outside lower center", **look)


def _one_against_rest(
    predictions: Predictions,
) -> Iterator[tuple[str, npt.NDArray[np.bool_], npt.NDArray[np.float64], dict[str, Any]]]:
    """Yield name, who is of it, scores and look of each class that has both sides."""
    looks = zip(cycle(COLOURS), cycle(STYLES), strict=False)
    for k, (name, (colour, style)) in enumerate(zip(predictions.classes, looks, strict=False)):
        positive_N = predictions.labels_N == k
        if not positive_N.all() and positive_N.any():
            look = {"color": colour, "linestyle": style, "linewidth": 1.9}
            yield _plain(name), positive_N, predictions.probabilities_NK[:, k], look


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
