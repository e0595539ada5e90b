"""Sentences of a Markdown page, without what is no prose: code, tables, headings, comments."""

import re
from collections.abc import Iterator

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2[ \t]*$", flags=re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", flags=re.DOTALL)
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", flags=re.DOTALL)
ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")
NO_PROSE = re.compile(r"^(?:#+ |\s*\||    (?! *(?:[-*+]|\d+[.)]) )|\s*<|\s*(?:-{3,}|={3,})\s*$)")
# A dot that ends no sentence.
ABBREVIATION = re.compile(r"(?:\bet al|\be\.g|\bi\.e|\bvs|\bcf|\bapprox|\bNo)\.$")
END = re.compile(r"[.!?][\"'”’)\]*_]*\s+")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line on which each sentence of a page begins, and the sentence in one line."""
    for start, paragraph in _paragraphs(_blank(text)):
        begin = 0
        ends = [found.end() for found in END.finditer(paragraph)]
        for end in [*ends, len(paragraph)]:
            sentence = paragraph[begin:end]
            if end < len(paragraph) and ABBREVIATION.search(sentence.rstrip()):
                continue
            if sentence.strip():
                yield start + paragraph.count("\n", 0, begin), " ".join(sentence.split())
            begin = end


def words(sentence: str) -> int:
    """Return how many words a sentence has; code counts as one."""
    return sum(any(each.isalnum() for each in word) for word in sentence.split())


def _blank(text: str) -> str:
    """Return a page of the same lines without code and comments; a link is its words."""

    def lines_of(found: re.Match[str]) -> str:
        return "\n" * found[0].count("\n")

    for pattern in (FENCE, COMMENT, IMAGE):
        text = pattern.sub(lines_of, text)
    text = CODE.sub(lambda found: "Code" + lines_of(found), text)
    return LINK.sub(lambda found: found[1], text)


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each paragraph and each item of a list."""
    lines: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        is_prose = line.strip() and not NO_PROSE.match(line)
        if lines and (not is_prose or ITEM.match(line)):
            yield number - len(lines), "\n".join(lines)
            lines = []
        if is_prose:
            lines.append(ITEM.sub("", line).removeprefix("> "))
