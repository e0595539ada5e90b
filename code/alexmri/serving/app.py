"""The server's routes: what each address answers, and with which errors."""

import base64
import hashlib
import logging
import os
import re
import threading
import time
import uuid
from importlib import resources
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException
from pydantic import BaseModel
from werkzeug.exceptions import HTTPException

from alexmri.contract.paths import Paths
from alexmri.serving.config import MEGABYTE, TRANSFORM_MB, Config
from alexmri.serving.decode import (
    CONTENT_TYPES,
    MAX_IMAGES,
    MAX_PIXELS,
    PixelBudget,
    Record,
    read_records,
    to_pixels,
)
from alexmri.serving.engine import Engine, Predictions
from alexmri.serving.request_error import RequestError, bad_request, too_large
from alexmri.serving.responses import Answer, choose_type
from alexmri.serving.scans import expand
from alexmri.serving.schemas import ACCEPT_TYPES, ExecutionParameters, Info, Limits, openapi

# Requests that may hold a thread; gunicorn_config has more threads, for /ping and refusals.
MAX_REQUESTS = 112
# SageMaker's default for a batch transform; times the concurrent requests it may be 100 at most.
DEFAULT_TRANSFORM_MB = 6
# What is wrong with a record itself: a batch transform tells it in its place and goes on.
OF_THE_RECORD = (400, 413, 422)
CHUNK_BYTES = 2**16
# What the platform allows: visible US-ASCII, at most 1,024 characters.
CUSTOM_ATTRIBUTES = re.compile(r"[\x20-\x7e]{1,1024}")
HINTS = {
    404: "there is no such address; POST images to /invocations, or open / for a page",
    405: "this address takes the methods that Allow names; POST images to /invocations",
}
# In the query or among the custom attributes.
EXPLAIN = re.compile(r"(?:^|[&,;\s])explain=([^&,;\s]*)")
ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"
INFO_FACTS = ("architecture", "classes", "preprocessing", "temperature", "metrics")
PAGE = resources.files("alexmri.serving").joinpath("page.html").read_text(encoding="utf-8")

log = logging.getLogger("alexmri.serving")


def serve(folder: str | None = None) -> Flask:
    """Return the application for gunicorn; its hook `post_worker_init` starts loading the model.

    Without `folder` the model directory is that of the platform's layout, /opt/ml/model.
    """
    model = Path(folder) if folder else Paths.of(os.environ).model
    return create_app(Engine(model, Config.of(os.environ)))


def create_app(engine: Engine) -> Flask:
    """Return the application that answers with `engine`."""
    app = Flask("alexmri")
    app.extensions["engine"] = engine
    app.json.sort_keys = False  # type: ignore[attr-defined]
    free = threading.Semaphore(MAX_REQUESTS)
    description = openapi()

    @app.before_request
    def begin() -> None:
        g.began, g.request_id, g.labels, g.code = time.monotonic(), uuid.uuid4().hex, (), ""

    @app.get("/ping")
    def ping() -> Response:
        engine.require_up()
        return empty(200)

    @app.post("/invocations")
    def invocations() -> Response:
        if not free.acquire(blocking=False):
            raise RequestError(
                429, "too_many_requests", "too many requests are in flight; try again later", 1
            )
        try:
            answer, media = invoke(app, engine)
        finally:
            free.release()
        g.labels = answer.labels()
        batch = engine.config.batch_transform
        return Response(answer.encode(media, newline_at_end=not batch), content_type=media)

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        allowed = engine.config.max_payload_bytes // MEGABYTE
        batch = engine.config.batch_transform
        megabytes = allowed if batch else min(allowed, DEFAULT_TRANSFORM_MB)
        return as_json(
            ExecutionParameters(
                MaxConcurrentTransforms=max(1, TRANSFORM_MB // megabytes), MaxPayloadInMB=megabytes
            )
        )

    @app.get("/info")
    def info() -> Response:
        return as_json(info_of(engine))

    @app.get("/metrics")
    def metrics() -> Response:
        media = "text/plain; version=0.0.4; charset=utf-8"
        return Response(engine.metrics.exposition(), content_type=media)

    @app.get("/openapi.json")
    def openapi_json() -> dict[str, Any]:
        return description

    @app.get("/")
    def page() -> Response:
        return Response(PAGE, content_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    @app.errorhandler(RequestError)
    def refuse(error: RequestError) -> Response:
        g.code = error.code
        if request.path == "/ping" and error.status == 503:
            return empty(503)
        body = error.encode(g.request_id)
        answer = Response(body, error.status, content_type="application/json")
        if error.retry_after_s is not None:
            answer.headers["Retry-After"] = str(error.retry_after_s)
        return answer

    @app.errorhandler(HTTPException)
    def refuse_by_rule(error: HTTPException) -> Response:
        code = error.name.lower().replace(" ", "_")
        message = HINTS.get(error.code or 500, error.description or error.name)
        answer = refuse(RequestError(error.code or 500, code, message))
        answer.headers.extend(
            (name, value) for name, value in error.get_headers() if name == "Allow"
        )
        return answer

    @app.errorhandler(Exception)
    def admit(error: Exception) -> Response:
        log.exception("request %s failed", g.request_id)
        message = "the server failed; its log names the request_id"
        return refuse(RequestError(500, "internal_error", message))

    @app.after_request
    def finish(answer: Response) -> Response:
        answer.headers["X-Request-Id"] = g.request_id
        if request.path != "/invocations":
            return answer
        attributes = request.headers.get(ATTRIBUTES_HEADER, "")
        if CUSTOM_ATTRIBUTES.fullmatch(attributes):
            answer.headers[ATTRIBUTES_HEADER] = attributes
        facts = {
            "request_id": g.request_id,
            "code": g.code,
            "inference_id": request.headers.get("X-Amzn-SageMaker-Inference-Id", "")[:64],
        }
        engine.metrics.request(answer.status_code, time.monotonic() - g.began, g.labels, facts)
        return answer

    return app


def invoke(app: Flask, engine: Engine) -> tuple[Answer, str]:
    """Answer the request at hand; return the answer and the media type that it is wanted in.

    Raises:
        RequestError: the request, or its time, will not do.
    """
    predictor, batcher = engine.require_ready()
    config, bundle = engine.config, predictor.bundle
    explained = wants_gradcam()
    media = choose_type(request.headers.get("Accept", ""), config.default_accept)
    batcher.require_room()
    deadline: float = g.began + config.timeout_s
    tolerated = OF_THE_RECORD if config.batch_transform else ()
    with PixelBudget(deadline) as budget:
        records: list[Record]
        try:
            body = read_body(app, config.max_payload_bytes)
            records = read_records(request.headers.get("Content-Type", ""), body, budget)
        except RequestError as error:
            if error.status not in tolerated:
                raise
            records = [error]
        records, sources = expand(records, budget, bundle.slicing)
        pixels_NCHW, errors = to_pixels(
            records,
            budget,
            image_size=bundle.image_size,
            channels=bundle.channels,
            preprocessing=bundle.preprocessing,
            tolerated=tolerated,
        )
    if len(pixels_NCHW):
        predictions = batcher.submit(pixels_NCHW, deadline)
    else:
        predictions = Predictions.none(len(bundle.classes))
    answer = Answer(
        model_version=bundle.version,
        request_id=g.request_id,
        classes=bundle.classes,
        conformal=bundle.conformal,
        predictions=predictions,
        errors=errors,
        sources=sources,
        overlays=engine.explain(pixels_NCHW, predictions, deadline) if explained else (),
    )
    return answer, media


def read_body(app: Flask, max_bytes: int) -> bytes:
    """Return the body of the request at hand; the worker ends the reading when its time is over.

    Raises:
        RequestError: 400 its chunks are malformed; 408 it did not come in time, or not whole;
            413 it is larger than `max_bytes`, which is noticed before it is kept.
    """
    source, length = request.environ["wsgi.input"], request.content_length
    if length is not None and length > max_bytes:
        raise too_large(f"the request is larger than {max_bytes // MEGABYTE} MB")
    # Without a length (chunked) one byte too many is how a body over the limit is noticed.
    wanted = max_bytes + 1 if length is None else length
    pieces: list[bytes] = []
    try:
        while wanted > 0 and (piece := source.read(min(wanted, CHUNK_BYTES))):
            pieces.append(piece)
            wanted -= len(piece)
    except ParseException:
        raise bad_request("the chunks of the body are malformed") from None
    except OSError:
        raise incomplete() from None
    body = b"".join(pieces)
    if len(body) > max_bytes:
        raise too_large(f"the request is larger than {max_bytes // MEGABYTE} MB")
    if length is not None and len(body) < length:
        raise incomplete()
    if body_was_read := app.extensions.get("body_was_read"):
        body_was_read(request.environ["gunicorn.socket"])
    return body


def incomplete() -> RequestError:
    """Return the error of a body that did not come."""
    return RequestError(408, "request_timeout", "the request did not arrive in time")


def wants_gradcam() -> bool:
    """Whether the request at hand asks for `explain=gradcam`.

    Raises:
        RequestError: 400, it asks for another explanation.
    """
    query, attributes = request.query_string.decode(), request.headers.get(ATTRIBUTES_HEADER, "")
    wishes = EXPLAIN.findall(query) + EXPLAIN.findall(attributes)
    if any(wish != "gradcam" for wish in wishes):
        raise bad_request("the only explanation is explain=gradcam")
    return bool(wishes)


def info_of(engine: Engine) -> Info:
    """Return what /info tells.

    Raises:
        RequestError: 503, there is no model yet.
    """
    predictor, batcher = engine.require_ready()
    document = predictor.bundle.document
    data = document.get("data", {})
    return Info(
        **{name: document[name] for name in INFO_FACTS if name in document},
        model_version=predictor.bundle.version,
        image_size=predictor.bundle.image_size,
        channels=predictor.bundle.channels,
        slicing=predictor.bundle.slicing.model_dump(mode="json"),
        conformal=document.get("conformal"),
        trained_on=data.get("counts", {}).get("train"),
        synthetic=bool(data.get("synthetic")),
        intended_use=document["intended_use"],
        card=predictor.bundle.card,
        content_types=list(CONTENT_TYPES),
        accept_types=list(ACCEPT_TYPES),
        limits=Limits(
            payload_mb=engine.config.max_payload_bytes // MEGABYTE,
            images=MAX_IMAGES,
            pixels=MAX_PIXELS,
            seconds=engine.config.timeout_s,
            images_in_flight=batcher.capacity,
        ),
        milliseconds_by_batch_size={
            size: round(seconds * 1000, 2) for size, seconds in batcher.latency.timed.items()
        },
    )


def empty(status: int) -> Response:
    """Return an answer without a body."""
    answer = Response(status=status)
    del answer.headers["Content-Type"]
    return answer


def as_json(model: BaseModel) -> Response:
    """Return a model as an answer."""
    return Response(model.model_dump_json(), content_type="application/json")


def policy_hashes(tag: str) -> str:
    """Return the sources by which a policy knows the page's own `tag` elements."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in found)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


# A policy under which nothing outside the page can run.
PAGE_HEADERS = {
    # Images come from the visitor's own disk (blob:) and from answers (data:).
    "Content-Security-Policy": f"default-src 'none'; script-src {policy_hashes('script')};"
    f" style-src {policy_hashes('style')}; img-src blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
