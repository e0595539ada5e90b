"""What a request may hold, and what it is told when it holds something else."""

import base64
import json

import numpy as np
import pytest

from alexmri.data.pixels import decode
from alexmri.serving.codec import (
    LARGEST_REQUEST_BYTES,
    MOST_PICTURES,
    RequestError,
    answer_document,
    read_pictures,
    to_pixels,
)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def test_a_picture_is_taken_as_it_is() -> None:
    assert read_pictures("image/png", b"bytes") == [b"bytes"]


def test_json_holds_one_picture_or_several() -> None:
    one, two = (base64.b64encode(data).decode() for data in (b"one", b"two"))
    assert read_pictures("application/json", as_json({"image": one})) == [b"one"]
    several = as_json({"instances": [{"b64": one}, {"b64": two}]})
    assert read_pictures("application/json", several) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("image/png", b"x" * (LARGEST_REQUEST_BYTES + 1), 413),
        ("application/json", as_json({"instances": [{"b64": ""}] * (MOST_PICTURES + 1)}), 413),
        ("text/csv", b"1,2", 415),
        ("", b"1,2", 415),
        ("image/png", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"\xff", 400),
        ("application/json", as_json([]), 400),
        ("application/json", as_json({"instances": []}), 400),
        ("application/json", as_json({"instances": "abc"}), 400),
        ("application/json", as_json({"instances": ["abc"]}), 400),
        ("application/json", as_json({"instances": [{"b64": 3}]}), 400),
        ("application/json", as_json({"image": "not base64!"}), 400),
        ("application/json", as_json({"image": "ü"}), 400),
        ("application/json", as_json({"image": ""}), 400),
    ],
)
def test_a_request_that_will_not_do(content_type: str, body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        read_pictures(content_type, body)
    assert caught.value.status == status


def test_the_picture_that_cannot_be_read_is_numbered() -> None:
    def read(data: bytes) -> np.ndarray:
        return decode(data, image_size=32, channels=1)

    with pytest.raises(RequestError, match=r"^the picture cannot be read as a picture") as caught:
        to_pixels([b"junk"], read)
    assert caught.value.status == 422
    with pytest.raises(RequestError, match=r"^picture 1 of 2: the picture cannot"):
        to_pixels([b"junk", b"junk"], read)


def test_the_answer_keeps_the_order_of_pictures_and_of_classes() -> None:
    document = answer_document("v1", [{"B": 0.9, "A": 0.1}, {"A": 0.6, "B": 0.4}])
    assert json.dumps(document) == (
        '{"model": "v1", "predictions": ['
        '{"label": "B", "probabilities": {"B": 0.9, "A": 0.1}}, '
        '{"label": "A", "probabilities": {"A": 0.6, "B": 0.4}}]}'
    )
