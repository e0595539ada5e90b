"""Say whether one version of a model is better than another, as far as can be told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The half-width of a 95 % interval in standard errors.
Z95 = 1.96
METRICS = ("accuracy", "macro_f1")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of both: value with interval as text, and B - A with its own interval."""

    name: str
    a: str
    b: str
    difference: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`rows` to show, `doubts` about comparing at all, and the answer in words."""

    rows: tuple[Row, ...]
    doubts: tuple[str, ...]
    answer: str


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> Comparison:
    """Compare two documents of `registry.evaluation_of` by their test figures.

    The interval of the difference takes both figures for independent. On the same test images they
    are not, and the true interval is narrower: a difference that shows here is one.
    """
    tested_a, tested_b = a.get("test"), b.get("test")
    if not tested_a or not tested_b:
        missing = "neither has" if not (tested_a or tested_b) else "one of them lacks"
        return Comparison((), (), f"It cannot be told: {missing} figures of a test set.")
    names = [*METRICS, *(f"F1 of {each}" for each in tested_a["per_class"])]
    rows = []
    for name in names:
        figure_a, figure_b = _figure(tested_a, name), _figure(tested_b, name)
        rows.append(Row(name, _text(figure_a), _text(figure_b), _difference(figure_a, figure_b)))
    doubts = tuple(_doubts(a, b))
    return Comparison(
        tuple(rows), doubts, _answer(tested_a["macro_f1"], tested_b["macro_f1"], bool(doubts))
    )


def _figure(tested: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    if name in METRICS:
        figure: Mapping[str, Any] | None = tested.get(name)
        return figure
    return (tested["per_class"].get(name.removeprefix("F1 of ")) or {}).get("f1")


def _doubts(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    doubts = []
    split_a, split_b = a["protocol"]["split_by"], b["protocol"]["split_by"]
    if split_a != split_b:
        doubts.append(f"A was tested on a split by {split_a}, B on one by {split_b}")
    data = [document.get("data_fingerprint") for document in (a, b)]
    if data[0] != data[1] or data[0] is None:
        doubts.append("they were not trained and tested on the same data")
    elif a["test"]["images"] != b["test"]["images"]:
        doubts.append("their test sets differ in size: the split was another")
    return doubts


def _answer(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, doubtful: bool) -> str:
    if doubtful:
        return "It cannot be told: the figures are not of the same test."
    interval = _interval(a, b)
    if interval is None:
        return "It cannot be told: a macro F1 has no interval."
    low, high = interval
    if low > 0:
        return "Yes, B is better: the interval of the difference in macro F1 is above 0."
    if high < 0:
        return "No, B is worse: the interval of the difference in macro F1 is below 0."
    return "It cannot be told: the interval of the difference in macro F1 holds 0."


def _interval(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None
) -> tuple[float, float] | None:
    if not a or not b or not a["ci95"] or not b["ci95"]:
        return None
    errors = [(each["ci95"][1] - each["ci95"][0]) / (2 * Z95) for each in (a, b)]
    half = Z95 * math.hypot(*errors)
    difference = b["value"] - a["value"]
    return difference - half, difference + half


def _difference(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> str:
    if not a or not b:
        return "-"
    interval = _interval(a, b)
    shown = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
    return f"{b['value'] - a['value']:+.3f}{shown}"


def _text(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return "-"
    interval = figure["ci95"]
    shown = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{figure['value']:.3f}{shown}"
