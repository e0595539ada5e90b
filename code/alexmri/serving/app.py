"""The HTTP side of a model: what gunicorn serves, and the addresses that are for people."""

import os
import uuid
from importlib import resources
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from alexmri.contract.paths import Paths
from alexmri.serving.answers import ACCEPT_TYPES
from alexmri.serving.arrays import MAX_IMAGES
from alexmri.serving.decode import CONTENT_TYPES, MAX_PIXELS
from alexmri.serving.door import Door
from alexmri.serving.options import MEGABYTE, TRANSFORM_MB, Options
from alexmri.serving.page import page
from alexmri.serving.request_error import RequestError
from alexmri.serving.served_model import ServedModel

# SageMaker's default for a batch transform; times the concurrent requests it may be 100 at most.
USUAL_TRANSFORM_MB = 6


def serve(folder: str | None = None) -> Door:
    """Return the application for gunicorn; its hook `post_worker_init` starts loading the model.

    Without `folder` the model directory is that of the platform's layout, /opt/ml/model.
    """
    model = ServedModel(
        Path(folder) if folder else Paths.of(os.environ).model, Options.of(os.environ)
    )
    return Door(model, people_app(model).wsgi_app)


def create_app(model: ServedModel) -> Flask:
    """Return the whole application that answers with `model`, as Flask runs it."""
    app = people_app(model)
    app.wsgi_app = Door(model, app.wsgi_app)  # type: ignore[method-assign]
    return app


def people_app(model: ServedModel) -> Flask:
    """Return the part that is Flask's: facts, metrics, the description, and the errors of HTTP."""
    app = Flask("alexmri")
    app.register_blueprint(page)
    app.json.sort_keys = False  # type: ignore[attr-defined]

    @app.get("/info")
    def info() -> Response:
        predictor, batcher = model.require_ready()
        document = predictor.bundle.document
        told = ("architecture", "classes", "preprocessing", "temperature", "metrics")
        return jsonify(
            {
                "model_version": predictor.bundle.version,
                **{name: document[name] for name in told if name in document},
                "image_size": predictor.bundle.image_size,
                "channels": predictor.bundle.channels,
                "trained_on": document.get("data", {}).get("counts", {}).get("train"),
                "synthetic": bool(document.get("data", {}).get("synthetic")),
                "intended_use": document["intended_use"],
                "card": predictor.bundle.card,
                "content_types": CONTENT_TYPES,
                "accept_types": ACCEPT_TYPES,
                "limits": {
                    "payload_mb": model.options.largest_payload_bytes // MEGABYTE,
                    "pictures": MAX_IMAGES,
                    "pixels": MAX_PIXELS,
                    "seconds": model.options.timeout_s,
                    "pictures_inside": batcher.capacity,
                },
                "milliseconds_by_batch_size": {
                    size: round(seconds * 1000, 2) for size, seconds in batcher.costs.timed.items()
                },
            }
        )

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        allowed = model.options.largest_payload_bytes // MEGABYTE
        batch = model.options.batch_transform
        megabytes = allowed if batch else min(allowed, USUAL_TRANSFORM_MB)
        return jsonify(
            {
                "MaxConcurrentTransforms": max(1, TRANSFORM_MB // megabytes),
                "BatchStrategy": "SINGLE_RECORD",
                "MaxPayloadInMB": megabytes,
            }
        )

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(
            model.telemetry.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.get("/openapi.json")
    def openapi() -> Response:
        return Response(
            resources.files("alexmri.serving").joinpath("openapi.json").read_bytes(),
            content_type="application/json",
        )

    # The door answers these two; here they are known, so that other methods get 405.
    app.add_url_rule("/ping", "ping", _unreachable, methods=["GET"])
    app.add_url_rule("/invocations", "invocations", _unreachable, methods=["POST"])

    @app.errorhandler(RequestError)
    def refuse(error: RequestError) -> Response:
        answer = Response(
            error.encode(uuid.uuid4().hex), error.status, content_type="application/json"
        )
        if error.retry_after_s is not None:
            answer.headers["Retry-After"] = str(error.retry_after_s)
        return answer

    @app.errorhandler(HTTPException)
    def refuse_by_rule(error: HTTPException) -> Response:
        code = error.name.lower().replace(" ", "_")
        answer = refuse(RequestError(error.code or 500, code, error.description or error.name))
        answer.headers.extend(
            (name, value) for name, value in error.get_headers() if name == "Allow"
        )
        return answer

    @app.errorhandler(Exception)
    def admit(error: Exception) -> Response:
        app.logger.exception("a request failed")
        return refuse(RequestError(500, "internal_error", "the server failed; its log says why"))

    return app


def _unreachable() -> Any:
    raise AssertionError("the door answers this address")
