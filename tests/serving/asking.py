"""Ask an application in memory; every answer is compared with what openapi.json says of it."""

import io

from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from PIL import Image
from werkzeug.test import TestResponse

from alexmri.serving.schemas import openapi

CLASSES = ("MildDemented", "NonDemented", "VeryMildDemented")
OPENAPI = openapi()


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def described(answer: TestResponse, path: str, method: str) -> TestResponse:
    """Return the answer after a comparison with what openapi.json says about it."""
    told = OPENAPI["paths"][path][method]["responses"].get(str(answer.status_code))
    assert told, f"{method} {path} answers {answer.status_code}, which openapi.json does not have"
    content = told.get("content", {})
    assert (answer.mimetype in content) if content else not answer.data
    if answer.mimetype == "application/json" and content:
        schema = {**content["application/json"]["schema"], "components": OPENAPI["components"]}
        Draft202012Validator(schema).validate(answer.json)
    if "Retry-After" in told.get("headers", {}):
        assert int(answer.headers["Retry-After"]) >= 1
    return answer


def invoke(
    client: FlaskClient,
    data: bytes,
    content_type: str = "image/png",
    path: str = "",
    **headers: str,
) -> TestResponse:
    answer = client.post(
        f"/invocations{path}",
        data=data,
        content_type=content_type,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    return described(answer, "/invocations", "post")
