"""A plugin of pytest that prints one line per promise: `ok   SIGTERM: a checkpoint within 10 s`.

A promise is the first line of a test's docstring, and the case where a test has several:

    python -m pytest -p tests.promises -q -o console_output_style=classic -m promise tests/docker
"""

from collections.abc import Generator
from typing import Any

import pytest

WORDS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Give the report its line."""
    report = yield
    assert isinstance(item, pytest.Function)
    promise = (item.function.__doc__ or item.name).partition("\n")[0].rstrip(".")
    case = item.callspec.id if hasattr(item, "callspec") else ""
    report.promise = f"{promise}: {case}" if case else promise
    return report


def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """Replace pytest's dot; what a fixture did well is told by its tests alone."""
    if not hasattr(report, "promise") or (report.when != "call" and report.passed):
        return None
    outcome = "error" if report.failed and report.when != "call" else report.outcome
    return outcome, f"{WORDS[report.outcome]} {report.promise}\n", report.outcome.upper()
