"""What the documentation names is there, its commands run, and its sentences are short."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from .command_blocks import run_blocks
from .prose import sentences, words

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_WORDS = 30
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`tests/([\w/]+\.py)(?:::(\w+))?`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PROSE if "<!-- run -->" in page.read_text(encoding="utf-8")],
    ids=name_of,
)
def test_marked_commands_run(page: Path, tmp_path: Path) -> None:
    run_blocks(page, tmp_path)


def test_a_marked_command_that_fails_is_told_with_page_line_and_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shown = "```bash\nfalse    # not marked\n```\n"
    first = "<!-- run -->\n```bash\nalexmri --help > help\n```\n"
    page.write_text(
        f"{shown}\n{first}\n<!-- run -->\n\n```bash\ntest -s help\nls ./no\ntrue\n```\n"
    )
    with pytest.raises(AssertionError) as told:
        run_blocks(page, tmp_path)
    assert "page.md, line 13: exit code 2" in str(told.value)
    assert "No such file or directory" in str(told.value)
    page.write_text(first)
    run_blocks(page, tmp_path)


@pytest.mark.parametrize("page", PROSE, ids=name_of)
def test_no_sentence_is_long(page: Path) -> None:
    found = sentences(page.read_text(encoding="utf-8"))
    long = [f"{page.name}:{line}: {each}" for line, each in found if words(each) > MAX_WORDS]
    assert not long, "\n".join(long)


def test_sentences_are_told_apart() -> None:
    text = (
        "# A heading. It is none\n\nOne `a. b` two. Three et al. 2017, [four](x.md)?\nFive\nsix!"
        "\n\n| a. | b. |\n| --- | --- |\n\n    code. code\n\n```text\ncode.\n```\n"
        "\n- seven (e.g. 7.5).\n  Eight <!-- no. -->\n- nine\n1. ten\n"
    )
    assert list(sentences(text)) == [
        (3, "One Code two."),
        (3, "Three et al. 2017, four?"),
        (4, "Five six!"),
        (16, "seven (e.g. 7.5)."),
        (17, "Eight"),
        (18, "nine"),
        (19, "ten"),
    ]
    assert words("One `--two three` 4, – five.".replace("`--two three`", "Code")) == 4


def test_the_reference_is_what_the_code_makes_of_it() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))["render"]()
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == made, "docs/reference.md is not what the code says: run make reference"
