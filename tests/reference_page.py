"""What docs/reference.md says, for tests that compare it with the code and with what runs leave."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"


def section(title: str) -> str:
    """Return the text below a heading, up to the next one of the same level or above."""
    level = len(title.partition(" ")[0])
    found = re.search(
        rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{level}}} |\Z)",
        PAGE.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    assert found, f"docs/reference.md has no heading {title!r}"
    return found[1]


def first_cells(title: str) -> set[str]:
    """Return the code in the first cells of the tables below a heading."""
    cells = re.findall(r"^\| ([^|]+) \|", section(title), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def undescribed(evaluation: Any, classes: list[str]) -> set[str]:
    """Return the keys of an evaluation.json that the section Figures does not name."""
    named = set(re.findall(r"`([^`]+)`", section("## Figures")))
    ending = "_best_constant_classifier"
    return {key.removesuffix(ending) for key in _keys(evaluation)} - named - set(classes)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            if key not in ("subjects_between", "skipped_images"):
                yield from _keys(each)
    elif isinstance(value, list):
        for each in value:
            yield from _keys(each)
