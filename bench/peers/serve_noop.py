"""A WSGI application that reads a request and answers a constant: what HTTP alone costs."""

import json
import os
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

ANSWER = b" " * json.loads(os.environ["BENCH_SERVER"])["answer_bytes"]
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", HEADERS)
    return [ANSWER]


# What serving/worker.py and gunicorn_config.py want of an engine.
ENGINE = SimpleNamespace(
    has_room=True, may_accept=lambda: True, drain=lambda: None, load_in_background=lambda: None
)
app.extensions = {"engine": ENGINE}  # type: ignore[attr-defined]
