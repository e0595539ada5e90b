"""A WSGI application that reads a request and answers a constant: what HTTP alone costs."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

ANSWER = b" " * json.loads(os.environ["BENCH_SERVER"])["answer_bytes"]
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", HEADERS)
    return [ANSWER]
