"""Between HTTP and pictures: limits first, then bytes to pixels, and probabilities to JSON.

Knows nothing of torch, so that the server can answer while the model is still being loaded.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alexmri.data.pixels import Pixels
from alexmri.errors import UserError

# What SageMaker lets through to a real-time endpoint.
LARGEST_REQUEST_BYTES = 25 * 2**20
# One request holds a thread while its pictures are decoded; a person has fewer slices than this.
MOST_PICTURES = 512
IMAGE_TYPES = ("image/png", "image/jpeg")
JSON_TYPE = "application/json"
SHAPES = '{"image": "<base64>"} or {"instances": [{"b64": "<base64>"}]}'


class RequestError(Exception):
    """A request that cannot be answered: HTTP status, a code for programs, words for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def too_large() -> RequestError:
    """Return the error of a request over the limit."""
    limit = f"{LARGEST_REQUEST_BYTES // 2**20} MB"
    return RequestError(413, "payload_too_large", f"the request is larger than {limit}")


def read_pictures(content_type: str, body: bytes) -> list[bytes]:
    """Return the encoded pictures in a request, at least one.

    Raises:
        RequestError: 413 too large, 415 unknown type, 400 malformed.
    """
    if len(body) > LARGEST_REQUEST_BYTES:
        raise too_large()
    if content_type in IMAGE_TYPES:
        pictures = [body]
    elif content_type == JSON_TYPE:
        pictures = _pictures_in_json(body)
    else:
        raise RequestError(
            415,
            "unsupported_media_type",
            f"the content type is '{content_type}'; send {', '.join(IMAGE_TYPES)} or {JSON_TYPE}",
        )
    if not all(pictures):
        raise RequestError(400, "bad_request", "there is no picture: its bytes are missing")
    return pictures


def to_pixels(pictures: Sequence[bytes], decode: Callable[[bytes], Pixels]) -> Pixels:
    """Return the pictures as `uint8` pixels (N, C, S, S).

    Raises:
        RequestError: 422, one cannot be read as a picture.
    """
    decoded: list[Pixels] = []
    for number, picture in enumerate(pictures, start=1):
        try:
            decoded.append(decode(picture))
        except UserError as error:
            which = f"picture {number} of {len(pictures)}: " if len(pictures) > 1 else ""
            raise RequestError(422, "unreadable_picture", f"{which}{error}") from None
    return np.stack(decoded)


def answer_document(model: str, rankings: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the answer: model version and, for each picture, label and probability by class."""
    return {
        "model": model,
        "predictions": [
            {"label": next(iter(ranking)), "probabilities": dict(ranking)} for ranking in rankings
        ],
    }


def error_document(code: str, message: str, request_id: str) -> dict[str, Any]:
    """Return the one shape in which every error is told."""
    return {"error": {"code": code, "message": message, "request_id": request_id}}


def _pictures_in_json(body: bytes) -> list[bytes]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "bad_request", "the body is not valid JSON") from None
    match document:
        case {"image": str(text)}:
            return [_from_base64(text)]
        case {"instances": [_, *_] as instances} if len(instances) <= MOST_PICTURES:
            return [_from_instance(instance) for instance in instances]
        case {"instances": [_, *_] as instances}:
            raise RequestError(
                413,
                "payload_too_large",
                f"{len(instances)} pictures in one request; at most {MOST_PICTURES} are taken",
            )
        case _:
            raise RequestError(400, "bad_request", f"the body must be {SHAPES}")


def _from_instance(instance: object) -> bytes:
    match instance:
        case {"b64": str(text)}:
            return _from_base64(text)
        case _:
            raise RequestError(400, "bad_request", f"the body must be {SHAPES}")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "bad_request", "a picture is not valid base64") from None
