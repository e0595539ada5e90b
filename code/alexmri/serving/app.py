"""The HTTP side of a model: GET /ping says whether it can answer, POST /invocations asks it."""

import os
import uuid
from pathlib import Path

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from alexmri.contract.paths import Paths
from alexmri.serving.codec import (
    JSON_TYPE,
    LARGEST_REQUEST_BYTES,
    RequestError,
    answer_document,
    error_document,
    read_pictures,
    to_pixels,
    too_large,
)
from alexmri.serving.page import page
from alexmri.serving.served_model import ServedModel

CHUNK_BYTES = 2**20


def serve(folder: str | None = None) -> Flask:
    """Return the application for gunicorn and start loading the model directory `folder`.

    Without `folder` it is the one of the platform's layout, /opt/ml/model.
    """
    model = ServedModel(Path(folder) if folder else Paths.of(os.environ).model)
    model.load_in_background()
    return create_app(model)


def create_app(model: ServedModel) -> Flask:
    """Return the application that answers with `model`."""
    app = Flask("alexmri")
    app.register_blueprint(page)
    # One more than the limit: of a request without Content-Length so much is read and the rest
    # dropped in silence, and one byte too many is how `read_pictures` notices.
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_REQUEST_BYTES + 1
    # Probabilities stand the most likely first.
    app.json.sort_keys = False  # type: ignore[attr-defined]

    @app.before_request
    def name_request() -> None:
        g.request_id = uuid.uuid4().hex

    @app.get("/ping")
    def ping() -> Response:
        return Response(status=200 if model.predictor else 503)

    @app.post("/invocations")
    def invocations() -> Response:
        predictor = model.predictor
        if predictor is None:
            raise RequestError(503, "not_ready", "the model is still being loaded; try again")
        accepted = request.accept_mimetypes
        if accepted and not accepted.best_match([JSON_TYPE]):
            raise RequestError(406, "not_acceptable", f"the answer is {JSON_TYPE} only")
        pictures = read_pictures(request.mimetype, request.get_data())
        pixels_NCHW = to_pixels(pictures, predictor.pixels)
        rankings = model.rank(predictor, pixels_NCHW)
        return jsonify(answer_document(predictor.bundle.version, rankings))

    @app.errorhandler(RequestError)
    def refuse(error: RequestError) -> Response:
        if error.status == RequestEntityTooLarge.code:
            _read_away()
        answer = jsonify(error_document(error.code, error.message, g.request_id))
        answer.status_code = error.status
        return answer

    @app.errorhandler(HTTPException)
    def refuse_by_rule(error: HTTPException) -> Response:
        if isinstance(error, RequestEntityTooLarge):
            return refuse(too_large())
        code = error.name.lower().replace(" ", "_")
        return refuse(RequestError(error.code or 500, code, error.description or error.name))

    @app.errorhandler(Exception)
    def admit(error: Exception) -> Response:
        app.logger.exception("request %s failed", g.request_id)
        return refuse(
            RequestError(500, "internal_error", "the server failed; its log names the request_id")
        )

    return app


def _read_away() -> None:
    """Read what a client sends beyond the limit, up to four times as much.

    Most clients look for an answer only after they have sent everything, and would see a broken
    connection instead of the reason.
    """
    for _ in range(4 * LARGEST_REQUEST_BYTES // CHUNK_BYTES):
        if not request.environ["wsgi.input"].read(CHUNK_BYTES):
            break
