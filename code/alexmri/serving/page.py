"""The page for people at `/`: one file, and a policy under which nothing outside it can run."""

import base64
import hashlib
import re
from importlib import resources

from flask import Blueprint, Response

PAGE = resources.files("alexmri.serving").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """Return the sources by which a policy knows the page's own `tag` elements."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in found)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


HEADERS = {
    # Pictures come from the visitor's own disk (blob:) and from answers (data:).
    "Content-Security-Policy": f"default-src 'none'; script-src {_hashes('script')};"
    f" style-src {_hashes('style')}; img-src blob: data:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

page = Blueprint("page", __name__)


@page.get("/")
def show() -> Response:
    """Return the page."""
    return Response(PAGE, content_type="text/html; charset=utf-8", headers=HEADERS)
