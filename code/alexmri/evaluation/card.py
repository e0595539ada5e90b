"""Write MODEL_CARD.md: what a model is for, what it was trained on, what it reached."""

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from alexmri.data.synthetic import NOTICE
from alexmri.evaluation.formatting import estimate, figure
from alexmri.evaluation.interpretation import compared, headline, interpret
from alexmri.evaluation.report import audit_findings

# A class of fewer subjects is named among the limits: leaving one out changes its figures visibly.
MIN_SUBJECTS_PER_CLASS = 10
# What Markdown or HTML takes for more than itself; an underscore within a word is itself.
SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])|^[#+=\-]|^\d+(?=[.)]\s)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the card as Markdown; equal runs give equal cards.

    `facts` has protocol, leak_probe, audit, test, validation (as `metrics.measure` returns them),
    data (classes, counts, subjects, fingerprint, warnings), settings and model (parameters,
    temperature). Every text in it is escaped: classes and files are named by whoever made the data.
    """
    facts = escaped(facts)
    environment = Environment(
        loader=PackageLoader("alexmri", "evaluation"),
        # Not HTML: `escaped` has made every text safe, for Markdown and for HTML.
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"estimate": estimate, "figure": figure, "compared": compared}
    protocol, test = facts["protocol"], facts["test"]
    return environment.get_template("card.md").render(
        **facts,
        notice=NOTICE if protocol.get("synthetic") else None,
        headline=headline(protocol, test),
        interpretation=interpret(protocol, facts["leak_probe"], test),
        findings=audit_findings(facts["audit"], facts["data"]["warnings"]),
        min_subjects=MIN_SUBJECTS_PER_CLASS,
    )


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
