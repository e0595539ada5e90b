"""No request costs much more than it is worth, whatever its bytes are."""

import io
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

from alexmri.serving.codec import (
    LONGEST_SIDE,
    MANY_BYTES,
    MANY_PIXELS,
    MOST_PIXELS,
    PixelBudget,
    read_records,
)
from alexmri.serving.request_error import RequestError

from .request_bodies import (
    FORMATS,
    GRAY,
    PNG,
    TEXT,
    as_json,
    decoded,
    file_of,
    form,
    npy,
    pixels_of,
)

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
