"""A WSGI application that reads a request and answers a constant: what HTTP alone costs."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

ANSWER = b" " * json.loads(os.environ["BENCH_SERVER"])["answer_bytes"]
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


class NoEngine:
    """Has what serving/worker.py and gunicorn_config.py ask of an engine, and does none of it."""

    has_room = True

    def load_in_background(self) -> None: ...

    def may_accept(self) -> bool:
        return True

    def drain(self) -> None: ...


class Nothing:
    """Reads the body and answers the constant."""

    def __init__(self) -> None:
        self.extensions = {"engine": NoEngine()}

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        start_response("200 OK", HEADERS)
        return [ANSWER]


app = Nothing()
