"""What a request may hold, and what it is told when it does not."""

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from alexmri.data.pixels import decode
from alexmri.serving.answers import choose_type
from alexmri.serving.arrays import MOST_PICTURES
from alexmri.serving.codec import IMAGE_TYPES, MOST_PIXELS, PixelBudget, to_pixels
from alexmri.serving.request_error import RequestError

from .request_bodies import (
    FIELD,
    FORMATS,
    GRAY,
    PNG,
    TEXT,
    as_json,
    file_of,
    form,
    npy,
    pixels_of,
    records_of,
)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("content_type", IMAGE_TYPES)
def test_a_picture_file_is_what_its_bytes_are(kind: str, content_type: str) -> None:
    data = file_of(kind)
    pixels_NCHW, errors = pixels_of(f"{content_type.upper()}; q=1", data)
    assert errors == [None]
    np.testing.assert_array_equal(pixels_NCHW[0], decode(data, image_size=32, channels=1))


@pytest.mark.parametrize(
    ("document", "count"),
    [
        ({"image": TEXT}, 1),
        ({"image": {"b64": TEXT}}, 1),
        ({"instances": [TEXT]}, 1),
        ({"instances": [TEXT, {"b64": TEXT}, {"image": TEXT}]}, 3),
        ({"inputs": TEXT}, 1),
        ({"inputs": {"b64": TEXT}}, 1),
        ({"inputs": [TEXT, {"b64": TEXT}]}, 2),
    ],
)
def test_json_holds_files_in_base64(document: object, count: int) -> None:
    assert records_of("application/json", as_json(document)) == [PNG] * count


@pytest.mark.parametrize(
    ("document", "count"),
    [
        ({"image": GRAY.tolist()}, 1),
        ({"image": GRAY[:, :, None].tolist()}, 1),
        ({"image": (GRAY + 0.25).tolist()}, 1),
        ({"instances": [GRAY.tolist(), {"image": GRAY.tolist()}]}, 2),
        ({"inputs": GRAY.tolist()}, 1),
        ({"inputs": [GRAY.tolist(), GRAY.tolist()]}, 2),
        ({"inputs": np.stack([GRAY] * 3)[..., None].tolist()}, 3),
    ],
)
def test_json_holds_grey_levels(document: object, count: int) -> None:
    records = records_of("application/json", as_json(document))
    assert len(records) == count
    for record in records:
        np.testing.assert_array_equal(record, GRAY)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", ">u2"])
def test_npy_holds_one_picture_or_several(dtype: str) -> None:
    gray = GRAY.astype(dtype)
    colour = np.stack([gray] * 3, axis=-1)
    for array, count in ((gray, 1), (colour, 1), (np.stack([gray] * 2), 2), (colour[None], 1)):
        for content_type in ("application/x-npy", "application/octet-stream"):
            pixels_NCHW, errors = pixels_of(content_type, npy(array))
            assert errors == [None] * count
    by_file = io.BytesIO()
    Image.fromarray(GRAY).save(by_file, "PNG")
    expected, _ = pixels_of("image/png", by_file.getvalue())
    np.testing.assert_array_equal(pixels_NCHW, expected)


def test_lines_and_forms_hold_several() -> None:
    lines = b"\n".join([as_json(TEXT), b"", as_json({"b64": TEXT}), as_json({"image": TEXT})])
    assert records_of("application/jsonlines", lines + b"\r\n") == [PNG] * 3
    assert records_of(*form(PNG, PNG)) == [PNG, PNG]


def test_the_pictures_of_a_form_stay_in_its_order() -> None:
    assert records_of(*form(b"1", b"2", b"3", names="aba")) == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", as_json({"instances": [""] * (MOST_PICTURES + 1)}), 413),
        ("application/jsonlines", b"1\n" * (MOST_PICTURES + 1), 413),
        ("application/json", as_json({"inputs": [[[1, 2]]] * (MOST_PICTURES + 1)}), 413),
        ("application/json", as_json({"image": [[1, [2]]]}), 400),
        (*form(*[b"x"] * (MOST_PICTURES + 1)), 413),
        (*form(*[b"x"] * 3000), 413),
        ("application/x-npy", npy(np.zeros((MOST_PICTURES + 1, 2, 2), np.uint8)), 413),
        ("text/csv", b"1,2", 415),
        ("", b"1,2", 415),
        ("image/png", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b'{"image":' * 50_000, 400),
        ("application/json", b"\xff", 400),
        ("application/json", b'{"image": %s}' % (b"1" * 5000), 400),
        ("application/json", as_json([]), 400),
        ("application/json", as_json({"instances": []}), 400),
        ("application/json", as_json({"instances": "abc"}), 400),
        ("application/json", as_json({"image": 3}), 400),
        ("application/json", as_json({"image": "not base64!"}), 400),
        ("application/json", as_json({"image": "ü"}), 400),
        ("application/json", as_json({"image": [[1, 2], [3]]}), 400),
        ("application/json", as_json({"image": [["1", "2"]]}), 400),
        ("application/json", as_json({"image": [[True, False]]}), 400),
        ("application/json", as_json({"image": [[None]]}), 400),
        ("application/json", as_json({"image": [[10**400]]}), 400),
        ("application/json", b'{"image": ' + b"[" * 80 + b"1" + b"]" * 80 + b"}", 400),
        ("application/json", as_json({"image": [[256]]}), 422),
        ("application/json", as_json({"image": [[-1]]}), 422),
        ("application/json", b'{"image": [[NaN]]}', 422),
        ("application/json", as_json({"image": [1, 2]}), 422),
        ("application/json", as_json({"inputs": [1, 2]}), 422),
        ("multipart/form-data", b"--x", 400),
        ("multipart/form-data; boundary=x", b"--y\r\n", 400),
        ("multipart/form-data; boundary=x", FIELD, 400),
        ("application/x-npy", b"\x93NUMPY", 400),
        ("application/x-npy", npy(GRAY)[:-1], 400),
        ("application/x-npy", npy(np.array([{"a": 1}]), allow_pickle=True), 400),
        ("application/x-npy", npy(np.array(["a"])), 400),
        ("application/x-npy", npy(np.zeros((0, 4))), 422),
        ("application/x-npy", npy(np.zeros((2, 2, 2, 2), np.uint8)), 422),
        ("application/x-npy", npy(np.float32([[np.inf]])), 422),
    ],
)  # fmt: skip
def test_a_request_that_will_not_do(content_type: str, body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        records_of(content_type, body)
    assert caught.value.status == status


def test_the_first_bad_picture_ends_the_decoding() -> None:
    large = file_of("PNG", size=(1000, 1000))
    with PixelBudget(time.monotonic() + 60) as budget:
        with pytest.raises(RequestError, match="cannot be read as an image") as caught:
            to_pixels([b"junk", large], budget, image_size=32, channels=1)
        assert caught.value.message.startswith("picture 1 of 2: ")
        # All of the budget is left.
        budget.take(MOST_PIXELS // 4000, 4000)


def test_a_bad_record_is_told_in_its_place() -> None:
    good, junk = {"b64": TEXT}, {"b64": base64.b64encode(b"junk").decode()}
    document = {"instances": [good, junk, {"b64": 3}, good, "", [[300]]]}
    pixels_NCHW, errors = pixels_of("application/json", as_json(document))
    assert len(pixels_NCHW) == 2
    assert [error and error.status for error in errors] == [None, 422, 400, None, 400, 422]
    assert errors[1] is not None
    assert errors[1].message.startswith("picture 2 of 6: the image cannot be read as an image")
    _, (alone,) = pixels_of("image/png", b"junk")
    assert alone is not None
    assert alone.message.startswith("the image cannot be read as an image")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/csv", "text/csv"),
        ("application/x-npy, application/json;q=0.5", "application/x-npy"),
        ("image/png, application/jsonlines;q=0.1", "application/jsonlines"),
        ("application/json; charset=utf-8", "application/json"),
        ('text/csv; header="a;b"; q=0.5, application/x-npy;version=1;q=0.9', "application/x-npy"),
    ],
)
def test_the_answer_has_the_type_the_client_prefers(accept: str, chosen: str) -> None:
    assert choose_type(accept, "application/json") == chosen


def test_the_platform_may_say_what_no_preference_means() -> None:
    assert choose_type("", "text/csv") == choose_type("*/*", "text/csv") == "text/csv"
    assert choose_type("", "text/html") == "application/json"
    with pytest.raises(RequestError) as caught:
        choose_type("text/html", "application/json")
    assert caught.value.status == 406
