"""What the documentation names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sagemaker.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


def test_every_promise_has_a_test_or_a_reason() -> None:
    promised = PAGE.partition("## What is promised")[2]
    rows = [line for line in promised.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| ---", "| the platform"))]
    assert len(rows) > 100
    for row in rows:
        *_, test, end = re.split(r"(?<!\\)\|", row)
        assert not end, row
        assert len(test.strip()) > len("`x.py::test_x`"), row


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_tests_it_names_exist(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for named, name in NAMED if named == file} <= functions
