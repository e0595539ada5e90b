"""Write what a measurement leaves for readers: one HTML page, the model card, JSON files, plots."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexmri.data.pages import page_templates
from alexmri.data.synthetic import NOTICE
from alexmri.evaluation.formatting import figure, interval, text_templates
from alexmri.evaluation.interpretation import (
    compared,
    describe_external,
    describe_subgroups,
    headline,
    interpret,
)
from alexmri.evaluation.metrics import statistics
from alexmri.files import write_atomically, write_json

DISCLAIMER = "Research software. Not a medical device; not for diagnosis."
# A class of fewer subjects is named among the limits: leaving one out changes its figures visibly.
MIN_SUBJECTS_PER_CLASS = 10
# What Markdown or HTML takes for more than itself; an underscore within a word is itself.
SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|^[#+=\-]|^\d+(?=[.)]\s)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def write_measured(folder: Path, evaluation: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write evaluation.json, statistics.json, the plots as PNG, and report.html, which comes last.

    `evaluation` is the content of evaluation.json; `facts` are those of `render_report`.
    statistics.json is about test images alone: without them there is none.
    """
    write_json(folder / "evaluation.json", evaluation)
    if facts["test"]:
        write_json(folder / "statistics.json", statistics(facts["test"]))
    for name, png in facts["plots"].items():
        write_atomically(folder / f"{name}.png", png)
    write_atomically(folder / "report.html", render_report(facts))


def render_report(facts: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that needs nothing from outside.

    `facts` has title, generated, protocol, leak_probe, test, validation, history, best_epoch,
    data (classes, counts and subjects by split, fingerprint, warnings), audit (the document of the
    data's audit, or None), robustness (of `measure_robustness`), prediction_sets (of
    `measure_sets`), top_losses, settings, run, code, model (parameters, temperature) and plots (PNG
    bytes by name; missing ones are left out).
    Without a training `history` is empty, and only the splits that `counts` names are shown. There
    may also be subgroups (of `measure_subgroups`) and external (of `measure_external`).
    Everything in it is escaped: class names are folder names. Raises jinja2.UndefinedError where a
    key is missing.
    """
    environment = page_templates("evaluation")
    environment.filters |= {
        "figure": figure,
        "interval": interval,
        "shown": _shown,
        "base64": _base64,
        "compared": compared,
        "describe_external": describe_external,
        "describe_subgroups": describe_subgroups,
    }
    return environment.get_template("report.html").render(
        **{"external": None, "subgroups": None, **facts},
        **_meaning(facts),
        disclaimer=DISCLAIMER,
        other=facts["protocol"].get("compared_with") or "test",
    )


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card as Markdown; equal runs give equal cards.

    `facts` has protocol, leak_probe, audit, test, validation (as `metrics.measure` returns them),
    data (classes, counts, subjects, fingerprint, warnings), prediction_sets, robustness, settings
    and model (parameters, temperature). Every text in it is escaped: classes and files are named by
    whoever made the data.
    """
    facts = escaped(facts)
    environment = text_templates()
    environment.filters["compared"] = compared
    return environment.get_template("card.md").render(
        **facts, **_meaning(facts), min_subjects=MIN_SUBJECTS_PER_CLASS
    )


def audit_findings(audit: Mapping[str, Any] | None, warnings: Sequence[str]) -> list[str]:
    """Return what the audit found as sentences: its verdict, neighbouring slices, warnings."""
    found = []
    if audit is not None:
        found += audit["verdict"]
        if pairs := audit["near_duplicate_counts"]["pairs"]:
            across = audit["near_duplicate_counts"]["across_splits"]
            found.append(
                f"Pairs of slices that are nearly the same: {pairs}, of which {across} are in"
                " different splits. Such pairs are often neighbouring slices of one person."
            )
    known = {words.rstrip(".").lower() for words in found}
    return [*found, *(words for words in warnings if words.rstrip(".").lower() not in known)]


def _meaning(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what page and card say in words."""
    protocol, test = facts["protocol"], facts["test"]
    return {
        "notice": NOTICE if protocol.get("synthetic") else None,
        "headline": headline(protocol, test),
        "interpretation": interpret(protocol, facts["leak_probe"], test),
        "findings": audit_findings(facts["audit"], facts["data"]["warnings"]),
    }


def escaped(value: Any) -> Any:
    """Return `value` with every text in it, keys too, made to stand for itself in Markdown."""
    if isinstance(value, str):
        text = SPECIAL.sub(lambda found: "".join(f"&#{ord(each)};" for each in found[0]), value)
        return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    if isinstance(value, Mapping):
        return {escaped(key): escaped(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(each) for each in value]
    return value


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _shown(value: Any) -> str:
    """Write a setting's value for readers."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)
