"""The two addresses a platform calls, /ping and /invocations, before any framework.

Flask costs 0.2 ms per request, as much as decoding a slice, and does nothing for these two; it
serves the rest.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.util import http_date

from alexmri.serving.answers import Answer, Forecast, choose_type
from alexmri.serving.decode import PixelBudget, read_records, to_pixels
from alexmri.serving.request_error import RequestError, bad_request, too_large
from alexmri.serving.served_model import ServedModel
from alexmri.serving.states import State

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Application = Callable[[Environ, Any], Iterable[bytes]]

CHUNK_BYTES = 2**16
# Of the threads (gunicorn_conf.py); the others refuse.
MOST_UNDER_WAY = 224
STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
# What is wrong with a record itself; a batch transform goes on with the next one.
OF_THE_RECORD = (400, 413, 415, 422)
# What the platform allows: visible US-ASCII, at most 1,024 characters.
CUSTOM_ATTRIBUTES = re.compile(r"[\x20-\x7e]{1,1024}")

# In the query or among the custom attributes.
EXPLAIN = re.compile(r"(?:^|[&,;\s])explain=([^&,;\s]*)")

log = logging.getLogger("alexmri.serving")


class Door:
    """The WSGI application: /ping and /invocations here, everything else by `others`."""

    def __init__(self, model: ServedModel, others: Application) -> None:
        self.model = model
        self.drain = model.drain
        self.requests_under_way = 0
        self._others = others
        self._counting = threading.Lock()
        # The requests whose body has come, by their connections, until the model has answered.
        self.inside: set[object] = set()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/ping" and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            start_response(self._health(), [("Content-Length", "0")])
            return []
        if path == "/invocations" and environ["REQUEST_METHOD"] == "POST":
            with self._counting:
                self.requests_under_way += 1
            try:
                return self._invoke(environ, start_response)
            finally:
                with self._counting:
                    self.requests_under_way -= 1
        return self._others(environ, start_response)

    def is_full(self) -> bool:
        """Whether one more request is to be refused."""
        model = self.model
        if model.batcher is None or model.state is not State.READY:
            return False
        return len(self.inside) >= model.batcher.capacity

    def pong(self) -> bytes:
        """Return the whole answer to a ping."""
        head = f"HTTP/1.1 {self._health()}\r\nDate: {http_date()}\r\nContent-Length: 0\r\n\r\n"
        return head.encode()

    def refuse_unread(self) -> bytes:
        """Return, and note, the whole answer to a request that was not read: 429."""
        assert self.model.batcher is not None  # noqa: S101 - it is full
        request_id, error = uuid.uuid4().hex, self.model.batcher.refusal()
        self.model.telemetry.request(
            error.status, 0.0, (), {"request_id": request_id, "code": error.code}
        )
        content = error.encode(request_id)
        head = (
            f"HTTP/1.1 {STATUS_LINES[error.status]}\r\nDate: {http_date()}\r\n"
            f"X-Request-Id: {request_id}\r\nContent-Type: application/json\r\n"
            f"Retry-After: {error.retry_after_s}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def _health(self) -> str:
        return STATUS_LINES[200 if self.model.is_up else 503]

    def _invoke(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        began = time.monotonic()
        request_id = uuid.uuid4().hex
        headers = [("X-Request-Id", request_id)]
        attributes = environ.get("HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES", "")
        if CUSTOM_ATTRIBUTES.fullmatch(attributes):
            headers.append(("X-Amzn-SageMaker-Custom-Attributes", attributes))
        labels: list[str] = []
        code = ""
        try:
            media = choose_type(environ.get("HTTP_ACCEPT", ""), self.model.options.default_accept)
            answer = self._answer(environ, began, request_id)
            status, labels = 200, answer.labels()
            content = answer.encode(media)
            headers.append(("Content-Type", media))
        except RequestError as error:
            status, code, content = error.status, error.code, error.encode(request_id)
            headers.append(("Content-Type", "application/json"))
            if error.retry_after_s is not None:
                headers.append(("Retry-After", str(error.retry_after_s)))
        except Exception:
            log.exception("request %s failed", request_id)
            fault = RequestError(
                500, "internal_error", "the server failed; its log names the request_id"
            )
            status, code, content = 500, fault.code, fault.encode(request_id)
            headers.append(("Content-Type", "application/json"))
        finally:
            self.inside.discard(_connection(environ))
        headers.append(("Content-Length", str(len(content))))
        start_response(STATUS_LINES[status], headers)
        self.model.telemetry.request(
            status,
            time.monotonic() - began,
            labels,
            {
                "request_id": request_id,
                "code": code,
                "inference_id": environ.get("HTTP_X_AMZN_SAGEMAKER_INFERENCE_ID", "")[:64],
            },
        )
        return [content]

    def _answer(self, environ: Environ, began: float, request_id: str) -> Answer:
        connection = _connection(environ)
        under_way = connection in self.inside
        predictor, batcher = self.model.require_ready(under_way=under_way)
        explained = _wants_gradcam(environ)
        batcher.check_room()
        if not under_way and self.is_full():
            raise batcher.refusal()
        if self.requests_under_way > MOST_UNDER_WAY:
            raise RequestError(
                429, "too_many_requests", "too many requests are under way; try again later", 1
            )
        deadline = began + self.model.options.timeout_s
        tolerated = OF_THE_RECORD if self.model.options.batch_transform else ()
        bundle = predictor.bundle
        with PixelBudget(deadline) as budget:
            try:
                body = self._read(environ, deadline)
                self.inside.add(connection)
                records = read_records(environ.get("CONTENT_TYPE", ""), body, budget)
            except RequestError as error:
                if error.status not in tolerated:
                    raise
                records = [error]
            pixels_NCHW, errors = to_pixels(
                records,
                budget,
                image_size=bundle.image_size,
                channels=bundle.channels,
                tolerated=tolerated,
            )
        if len(pixels_NCHW):
            forecast = batcher.ask(pixels_NCHW, deadline)
        else:
            forecast = Forecast.of_nothing(len(bundle.classes))
        self.inside.discard(connection)
        return Answer(
            model_version=bundle.version,
            request_id=request_id,
            classes=bundle.classes,
            forecast=forecast,
            errors=errors,
            overlays=self.model.explain(predictor, pixels_NCHW, forecast, deadline)
            if explained
            else (),
        )

    def _read(self, environ: Environ, deadline: float) -> bytes:
        """Return the body.

        The worker ends the reading at the deadline, and reads away what is left unread.

        Raises:
            RequestError: 400 its chunks are malformed; 408 it did not come in time, or not whole;
                413 it is larger than the limit, which is noticed before it is kept.
        """
        most = self.model.options.largest_payload_bytes
        source = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH") or ""
        # Without a length (chunked) one byte too many is how a body over the limit is noticed.
        expected = int(length) if length.isdigit() else None
        try:
            if expected is None or expected <= most:
                body = _read_whole(source, most + 1 if expected is None else expected, deadline)
        except ParseException:
            raise bad_request("the chunks of the body are malformed") from None
        except OSError:
            raise _incomplete() from None
        if (len(body) if expected is None else expected) > most:
            raise too_large(f"the request is larger than {most // 2**20} MB")
        if expected is not None and len(body) < expected:
            raise _incomplete()
        return body


def _connection(environ: Environ) -> object:
    """Return what tells a request from the others under way: gunicorn's socket."""
    return environ.get("gunicorn.socket", id(environ))


def _wants_gradcam(environ: Environ) -> bool:
    """Whether the request asks for `explain=gradcam`.

    Raises:
        RequestError: 400, it asks for another explanation.
    """
    attributes = environ.get("HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES", "")
    wishes = EXPLAIN.findall(environ.get("QUERY_STRING", "")) + EXPLAIN.findall(attributes)
    if any(wish != "gradcam" for wish in wishes):
        raise bad_request("there is one explanation: explain=gradcam")
    return bool(wishes)


def _incomplete() -> RequestError:
    return RequestError(408, "request_timeout", "the request did not come in time")


def _read_whole(source: Any, most: int, deadline: float) -> bytes:
    """Return at most `most` bytes; a client that dawdles is left at the deadline."""
    if most <= CHUNK_BYTES:
        return bytes(source.read(most))
    pieces: list[bytes] = []
    while most > 0 and (piece := source.read(min(most, CHUNK_BYTES))):
        pieces.append(piece)
        most -= len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(pieces)
