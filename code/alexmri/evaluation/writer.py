"""Write what a measurement leaves in a folder, after a training or of a model that was there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.evaluation.metrics import statistics
from alexmri.evaluation.report import render_report
from alexmri.files import write_atomically, write_json


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
