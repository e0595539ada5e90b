"""What a request may hold, what it is told when it does not, and that no file does harm."""

import base64
import io
import json
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexmri.data.pixels import Pixels, decode
from alexmri.serving.answers import choose_type
from alexmri.serving.arrays import MOST_PICTURES
from alexmri.serving.codec import (
    IMAGE_TYPES,
    LONGEST_SIDE,
    MANY_BYTES,
    MANY_PIXELS,
    MOST_PIXELS,
    PixelBudget,
    Record,
    read_records,
    to_pixels,
)
from alexmri.serving.request_error import RequestError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def file_of(kind: str, mode: str = "L", size: tuple[int, int] = (44, 52)) -> bytes:
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def form(*files: bytes, names: str = "f" * 3000) -> tuple[str, bytes]:
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in zip(names, files, strict=False)
    ]
    return "multipart/form-data; boundary=xyz", b"".join(parts) + b"--xyz--\r\n"


def pixels_of(content_type: str, body: bytes) -> tuple[Pixels, list[RequestError | None]]:
    return decoded(records_of(content_type, body))


def records_of(content_type: str, body: bytes) -> list[Record]:
    with PixelBudget(time.monotonic() + 60) as budget:
        return read_records(content_type, body, budget)


def decoded(records: list[Record]) -> tuple[Pixels, list[RequestError | None]]:
    with PixelBudget(time.monotonic() + 60) as budget:
        every = range(400, 500)
        return to_pixels(records, budget, image_size=32, channels=1, tolerated=every)


FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'
PNG = file_of("PNG")
TEXT = base64.b64encode(PNG).decode()


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


HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999), }"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(
            "application/x-npy",
            b"\x93NUMPY\x01\x00" + len(HEADER).to_bytes(2, "little") + HEADER + b"\0" * 100,
            id="a header of numpy that promises more than there is",
        ),
        pytest.param(
            "application/x-npy",
            npy(np.zeros((100_000, 1, 2), np.uint8)),
            id="many small pictures",
        ),
        pytest.param(
            "application/json",
            as_json({"image": [["x" * 10_000, *[1] * 1000]]}),
            id="a long string among numbers",
        ),
        pytest.param("application/jsonlines", b"\n" * 100_000 + b"1\r", id="empty lines"),
    ],
)
def test_what_is_refused_costs_little_memory(content_type: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        _, (error,) = pixels_of(content_type, body)
    except RequestError as refused:
        error = refused
    assert error is not None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_first_bad_picture_ends_the_decoding() -> None:
    large = file_of("PNG", size=(1000, 1000))
    with PixelBudget(time.monotonic() + 60) as budget:
        with pytest.raises(RequestError, match="cannot be read as a picture") as caught:
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
    assert errors[1].message.startswith("picture 2 of 6: the picture cannot be read as a picture")
    _, (alone,) = pixels_of("image/png", b"junk")
    assert alone is not None
    assert alone.message.startswith("the picture cannot be read as a picture")


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few kilobytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    data = zlib.compress(bytes(10_000_000), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def many_scans(times: int) -> bytes:
    """Return a progressive JPEG with one of its scans, 14 bytes, so many times more."""
    buffer = io.BytesIO()
    Image.new("L", (1900, 1900)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    _, (error,) = pixels_of("image/jpeg", many_scans(1000))
    assert error is not None
    assert (error.status, error.message) == (422, "the JPEG has more than 100 scans")
    _, (error,) = pixels_of("image/jpeg", many_scans(10))
    assert error is None


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    for width, height in (
        (9000, 9000),
        (60_000, 60_000),
        (MOST_PIXELS + 1, 1),
        (1, LONGEST_SIDE + 1),
    ):
        body = bomb(width, height)
        tracemalloc.start()
        _, (error,) = pixels_of("image/png", body)
        assert error is not None
        assert error.status in (413, 422)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_the_pixels_of_one_request_are_counted_together() -> None:
    large = file_of("JPEG", size=(3000, 3000))
    _, errors = decoded([large] * 6)
    assert [error and error.status for error in errors] == [None] * 4 + [413] * 2


def test_large_pictures_are_decoded_one_request_at_a_time() -> None:
    side = int(MANY_PIXELS**0.5) + 1
    with PixelBudget(time.monotonic() + 60) as first:
        first.take(side, side)
        with PixelBudget(time.monotonic() + 60) as small:
            small.take(200, 200)
        with pytest.raises(RequestError) as caught, PixelBudget(time.monotonic()) as second:
            second.take(side, side)
        assert caught.value.status == 503
        # Numbers take much more memory than their bytes, before their pixels can be counted.
        with pytest.raises(RequestError) as caught, PixelBudget(time.monotonic()) as numbers:
            read_records("application/jsonlines", b" " * MANY_BYTES + b"1", numbers)
        assert caught.value.status == 503
        passed = threading.Event()

        def wait() -> None:
            with PixelBudget(time.monotonic() + 60) as third:
                third.take(side, side)
                passed.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        # Long enough for a thread that nobody holds up.
        assert not passed.wait(0.5)
    waiting.join(60)
    assert passed.is_set()


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


SAMPLES = {
    **{f"image/{kind.lower()}": file_of(kind, mode) for kind in FORMATS for mode in ("L", "RGB")},
    "application/x-image": many_scans(1000),
    "application/x-npy": npy(GRAY),
    "application/json": as_json({"instances": [TEXT, GRAY.tolist()]}),
    "application/jsonlines": as_json(TEXT) + b"\n" + as_json(GRAY.tolist()),
    form(PNG, PNG)[0]: form(PNG, PNG)[1],
}
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "put", "cut", "repeat"]),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutated(body: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for place, kind, data in edits:
        at = int(place * len(body))
        if kind == "flip":
            body = body[:at] + bytes([body[at] ^ data[0]]) + body[at + 1 :] if body else data
        elif kind == "put":
            body = body[:at] + data + body[at + len(data) :]
        elif kind == "cut":
            body = body[:at] + body[at + 16 * len(data) :]
        else:
            body = body[:at] + body[max(0, at - 64) : at] * data[0] + body[at:]
    return body


def survives(content_type: str, body: bytes) -> None:
    began = time.process_time()
    try:
        pixels_NCHW, errors = pixels_of(content_type, body)
    except RequestError as refused:
        errors = [refused]
    else:
        assert pixels_NCHW.shape[1:] == (1, 32, 32)
    for error in errors:
        assert error is None or (400 <= error.status < 500 and "/" not in error.message[:40])
    # A second per megabyte, and one to begin with.
    assert time.process_time() - began < 1 + len(body) / 2**20


@pytest.mark.parametrize("content_type", SAMPLES)
@settings(deadline=None, max_examples=60)
@given(edits=EDITS)
def test_no_damage_to_a_request_is_more_than_refused(
    content_type: str, edits: list[tuple[float, str, bytes]]
) -> None:
    survives(content_type, mutated(SAMPLES[content_type], edits))


@pytest.mark.parametrize("content_type", SAMPLES)
@settings(deadline=None, max_examples=30)
@given(body=st.binary(min_size=1, max_size=400))
def test_no_junk_is_more_than_refused(content_type: str, body: bytes) -> None:
    survives(content_type, body)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=EDITS, index=st.integers(0, 200))
def test_no_damage_to_a_real_slice_is_more_than_refused(
    real_slices: Path, edits: list[tuple[float, str, bytes]], index: int
) -> None:
    files = sorted(real_slices.rglob("*.jpg"))
    survives("application/x-image", mutated(files[index % len(files)].read_bytes(), edits))
