"""Make one HTML page of an evaluation that says first what the number measures."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from alexmri.data.pages import page_templates
from alexmri.data.synthetic import NOTICE
from alexmri.evaluation.formatting import figure, interval
from alexmri.evaluation.interpretation import compared, headline, interpret

DISCLAIMER = "Research software. Not a medical device; not for diagnosis."


def render_report(facts: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that needs nothing from outside.

    `facts` has title, generated, protocol, leak_probe, test, validation, history, best_epoch,
    data (classes, counts and subjects by split, fingerprint, warnings), audit (the document of the
    data's audit, or None), top_losses, settings, run, code, model (parameters, temperature) and
    plots (PNG bytes by name; missing ones are left out). Without a training `history` is empty,
    and only the splits that `counts` names are shown. Everything in it is escaped: class names are
    folder names. Raises jinja2.UndefinedError where a key is missing.
    """
    environment = page_templates("evaluation")
    environment.filters |= {
        "figure": figure,
        "interval": interval,
        "shown": _shown,
        "base64": _base64,
        "compared": compared,
    }
    return environment.get_template("report.html").render(
        **facts,
        disclaimer=DISCLAIMER,
        notice=NOTICE if facts["protocol"].get("synthetic") else None,
        other=facts["protocol"].get("compared_with") or "test",
        headline=headline(facts["protocol"], facts["test"]),
        interpretation=interpret(facts["protocol"], facts["leak_probe"], facts["test"]),
        findings=audit_findings(facts["audit"], facts["data"]["warnings"]),
    )


def audit_findings(audit: Mapping[str, Any] | None, warnings: Sequence[str]) -> list[str]:
    """Return what the audit found as sentences: its verdict, counts of copies, warnings.

    Without a verdict its 1-NN baseline is told. What an audit does not know is left out.
    """
    if audit is None:
        return list(warnings)
    told = audit.get("verdict") or []
    found = [told] if isinstance(told, str) else [str(words) for words in told]
    probe = audit["leak_probe"]
    if not found and probe["slice"] is not None:
        found.append(
            f"The 1-NN baseline scores {figure(probe['slice'])} on a split by slice,"
            f" {figure(probe['subject'])} by person, {figure(probe['shuffled'])} with"
            " labels shuffled between people."
        )
    for key, name in (
        ("exact_duplicates", "Groups of exact copies"),
        ("near_duplicates", "Pairs that are changed copies or suspiciously alike"),
        ("skipped_images", "Unreadable images left out"),
    ):
        if key in audit:
            found.append(f"{name}: {len(audit[key])}.")
    if "near_duplicate_counts" in audit:
        found.append(
            "Pairs of slices that are nearly the same, neighbouring slices of one person among"
            f" them: {_shown(audit['near_duplicate_counts']).replace('_', ' ')}."
        )
    known = {words.rstrip(".").lower() for words in found}
    return [*found, *(words for words in warnings if words.rstrip(".").lower() not in known)]


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
