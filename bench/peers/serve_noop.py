"""A WSGI application that reads a request and answers a constant: what HTTP alone costs."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

ANSWER = b" " * json.loads(os.environ["BENCH_SERVER"])["answer_bytes"]
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]


class Nothing:
    """Has what container/gunicorn.conf.py asks of the real application, and does none of it."""

    requests_under_way = 0
    is_up = True
    timeout_s = 60.0

    def __init__(self) -> None:
        self.model = self.telemetry = self.options = self
        self.inside: set[object] = set()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        start_response("200 OK", HEADERS)
        return [ANSWER]

    def is_full(self) -> bool:
        return False

    def load_in_background(self, *details: Any) -> None: ...

    def share_connections(self, mine: int) -> int:
        return mine

    def drain(self) -> None: ...

    def flush(self) -> None: ...


app = Nothing()
