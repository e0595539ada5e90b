"""Make one HTML page of an evaluation that says first what the number measures."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alexmri.evaluation.verdict import compared, headline, verdict
from alexmri.evaluation.words import figure, interval

DISCLAIMER = "Research software. Not a medical device; not for diagnosis."


def render_report(facts: Mapping[str, Any]) -> str:
    """Return the report as one HTML page that needs nothing from outside.

    `facts` has title, generated, protocol, leak_probe, test, validation, history, best_epoch,
    data (classes, counts and people by split, fingerprint, warnings), audit (the document of the
    data's audit, or None), mistakes, settings, run, code, model (parameters, temperature) and
    plots (PNG bytes by name; missing ones are left out). Without a training `history` is empty,
    and only the splits that `counts` names are shown. Everything in it is escaped: class names are
    folder names. Raises jinja2.UndefinedError where a key is missing.
    """
    environment = Environment(
        loader=PackageLoader("alexmri", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "interval": interval,
        "shown": _shown,
        "breakable": _breakable,
        "base64": lambda png: base64.b64encode(png).decode(),
        "compared": compared,
    }
    return environment.get_template("report.html").render(
        **facts,
        disclaimer=DISCLAIMER,
        headline=headline(facts["protocol"], facts["test"]),
        verdict=verdict(facts["protocol"], facts["leak_probe"], facts["test"]),
        findings=audit_findings(facts["audit"], facts["data"]["warnings"]),
    )


def audit_findings(audit: Mapping[str, Any] | None, warnings: Sequence[str]) -> list[str]:
    """Return what the audit found as sentences: its verdict, copies, unreadable files, warnings."""
    if audit is None:
        return list(warnings)
    told = audit.get("verdict") or []
    found = [told] if isinstance(told, str) else [str(words) for words in told]
    counted = {
        "exact_duplicates": "groups of exact copies",
        "near_duplicates": "near copies (pairs of slices too much alike)",
        "skipped_images": "unreadable images left out",
    }
    for key, name in counted.items():
        if (number := count(audit.get(key))) is not None:
            found.append(f"{name[0].upper()}{name[1:]}: {number}.")
    probe = audit["leak_probe"]
    if probe.get("shuffled") is not None:
        found.append(
            f"Accuracy of a look-up of the most similar slice: {figure(probe['slice'])} on a split"
            f" by slice, {figure(probe['subject'])} by person, {figure(probe['shuffled'])} with"
            " labels shuffled between people."
        )
    return [*found, *(words for words in warnings if words not in found)]


def count(finding: Any) -> int | None:
    """Return how many things a part of the audit's document tells of, None where it does not."""
    if isinstance(finding, Mapping):
        told = finding.get("count", len(finding))
        return int(told) if isinstance(told, int) else None
    if isinstance(finding, list | tuple):
        return len(finding)
    return finding if isinstance(finding, int) else None


def _breakable(name: str) -> Markup:
    """Let a name be broken where its parts meet, so that no letters fall off on a telephone."""
    return Markup("<wbr>").join(re.split(r"(?<=[a-z])(?=[A-Z])|(?<=[_/])", name))


def _shown(value: Any) -> str:
    """Write a setting's value for people."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)
