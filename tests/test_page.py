"""The page at `/` as bytes: whole, by itself, and under a policy that names its own parts."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from alexmri.serving.app import create_app
from alexmri.serving.engine import Engine

VOID = {"meta", "link", "input", "br", "img"}


@pytest.fixture(scope="module")
def answer() -> TestResponse:
    return create_app(Engine(Path("nowhere"))).test_client().get("/")


def test_the_policy_allows_the_pages_own_parts_and_nothing_else(answer: TestResponse) -> None:
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_it_is_well_formed_and_needs_nothing_from_outside(answer: TestResponse) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.ids: list[str] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = dict(attributes)
            self.ids += [given["id"] or ""] if "id" in given else []
            assert not any(name == "style" or name.startswith("on") for name in given), tag
            for name in ("src", "href", "action"):
                assert (given.get(name) or "data:").startswith("data:"), tag
            if tag not in VOID:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    reader = Reader()
    reader.feed(answer.text)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    # What the script looks for is there.
    assert set(re.findall(r'byId\("([\w-]+)"\)', answer.text)) <= set(reader.ids)
    assert "not a diagnostic device" in answer.text
