"""What the documentation names is there: files, headings, tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`tests/([\w/]+\.py)(?:::(\w+))?`")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tests_it_names_exist(page: Path) -> None:
    for file, name in NAMED_TEST.findall(page.read_text(encoding="utf-8")):
        path = ROOT / "tests" / file
        assert path.is_file(), f"{page.name} names {file}"
        if name:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_published_port_is_one_of_this_machine_alone(page: Path) -> None:
    """The server neither encrypts nor authenticates."""
    published = re.findall(r"(?:-p|--publish)[ =](\S*\d+:\d+)", page.read_text(encoding="utf-8"))
    assert all(address.startswith("127.0.0.1:") for address in published), published
