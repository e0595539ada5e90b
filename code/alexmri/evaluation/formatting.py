"""Write figures for people, and fill in the room's templates of plain text."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def figure(value: float | Mapping[str, Any] | None) -> str:
    """Write a number, or the value of an estimate, with three decimals."""
    if isinstance(value, Mapping):
        value = value["value"]
    return "–" if value is None else f"{value:.3f}"


def estimate(value: Mapping[str, Any] | None) -> str:
    """Write an estimate as "value (low to high)", without the brackets where it has no interval."""
    shown = interval(value)
    return f"{figure(value)} ({shown})" if shown else figure(value)


def interval(estimate: Mapping[str, Any] | None) -> str:
    """Write an estimate's interval, or nothing where there is none."""
    if estimate is None or estimate["ci95"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"{low:.3f} to {high:.3f}"


def lead(difference: Mapping[str, Any] | None) -> str:
    """Write how far one figure is above another, with interval and p-value."""
    if difference is None:
        return "–"
    p_value = difference["p_value"]
    if difference["ci95"] is None or p_value is None:
        return _signed(difference["value"])
    low, high = map(_signed, difference["ci95"])
    return f"{_signed(difference['value'])} ({low} to {high}, p {shown_p_value(p_value)})"


def shown_p_value(p_value: float) -> str:
    """Write a p-value with its sign: `= 0.040`, or `≤ 0.001`, below which no test here goes."""
    return "≤ 0.001" if p_value <= 0.001 else f"= {p_value:.3f}"


def text_templates() -> Environment:
    """Return the room's templates that are not HTML; nothing that is put in is escaped."""
    environment = Environment(
        loader=PackageLoader("alexmri", "evaluation"),
        # Markdown and plain sentences: what shows them escapes them.
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "estimate": estimate, "lead": lead}
    environment.filters["p_value"] = shown_p_value
    return environment


def _signed(value: float) -> str:
    rounded = round(value, 3)
    return f"{rounded:+.3f}".replace("-", "−") if rounded else "0.000"
