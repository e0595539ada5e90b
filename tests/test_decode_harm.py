"""No request costs much more than it is worth, whatever its bytes are."""

import itertools
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from alexmri.serving.arrays import MAX_JSON_VALUES
from alexmri.serving.decode import (
    MANY_BYTES,
    MANY_NUMBER_BYTES,
    MANY_PIXELS,
    MAX_PIXELS,
    MAX_SIDE,
    PixelBudget,
    read_records,
    to_pixels,
)
from alexmri.serving.request_error import RequestError

from . import hostile_files as hostile
from .decode_cost import cost_of
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

pytestmark = pytest.mark.slow

HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999), }"
# As large as a request may be, nearly.
LARGE = 24_000_000
FORM = "multipart/form-data; boundary=x"
PART = b"--x\r\nContent-Disposition: form-data; name=a; filename=a\r\n"
EXIF_IFD = struct.pack("<H", 300) + struct.pack("<HHII", 1, 5, 1000, 0) * 300


def packed_text(key: bytes, text: bytes) -> bytes:
    return hostile.png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(text, 9))


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
            id="many small images",
        ),
        pytest.param(
            "application/json",
            as_json({"image": [["x" * 10_000, *[1] * 1000]]}),
            id="a long string among numbers",
        ),
        pytest.param("application/jsonlines", b"\n" * 100_000 + b"1\r", id="empty lines"),
        *(
            pytest.param("image/png", hostile.png_bomb(*size), id=f"a PNG of {size} pixels")
            for size in ((9000, 9000), (60_000, 60_000), (MAX_PIXELS + 1, 1), (1, MAX_SIDE + 1))
        ),
        pytest.param(
            "image/png",
            hostile.png_bomb(5000, 5000, bits=16, colour=2, size=10**8),
            id="a large PNG with 16 bits per colour",
        ),
        pytest.param("image/webp", hostile.webp_with(b"", 16_000, 12_000), id="a huge WebP canvas"),
        pytest.param(
            "image/tiff", hostile.tiff_of_tiles(16, 16, (20_000, 20_000)), id="a huge TIFF tile"
        ),
    ],
)
def test_what_is_refused_costs_little_memory(content_type: str, body: bytes) -> None:
    cost = cost_of(content_type, body)
    assert 400 <= cost.status < 500
    assert cost.megabytes < 16


HOSTILE: dict[str, Callable[[], bytes]] = {
    "BMP: run-length encoded": lambda: hostile.bmp_of_runs(20_000, 2000),
    "JPEG: empty segments": lambda: hostile.jpeg_with(b"\xff\xe5\0\2" * 6_000_000),
    "JPEG: markers": lambda: hostile.jpeg_with(b"\xff\xd0" * (LARGE // 2)),
    "JPEG: zeros between segments": lambda: hostile.JPEG[:3] + bytes(LARGE) + hostile.JPEG[2:],
    "JPEG: fill bytes": lambda: hostile.jpeg_with(b"\xff" * LARGE),
    "JPEG: quantization tables": lambda: hostile.jpeg_with(
        hostile.jpeg_segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 370
    ),
    "JPEG: frame headers": lambda: hostile.jpeg_with(
        hostile.jpeg_segment(0xC0, b"\x08\0\x08\0\x08\1" + b"\1\x11\0" * 21_000) * 380
    ),
    "JPEG: Photoshop blocks": lambda: hostile.jpeg_with(
        hostile.jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\5\0\0\0\0\0\0" * 5400) * 370
    ),
    "JPEG: EXIF in many segments": lambda: hostile.jpeg_with(
        hostile.jpeg_segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 370
    ),
    "JPEG: a resolution of many fractions": lambda: hostile.jpeg_with(
        hostile.jpeg_segment(0xE1, hostile.exif_of_fractions(8000, tag=282))
    ),
    "JPEG: scans": lambda: hostile.jpeg_of_scans(1000),
    "PNG: chunks": lambda: hostile.png_with(hostile.png_chunk(b"prVt", b"") * 2_000_000),
    "PNG: empty pixel data": lambda: (
        hostile.PNG[:-12] + hostile.png_chunk(b"IDAT", b"") * 2_000_000 + hostile.PNG[-12:]
    ),
    "PNG: texts that unpack to 64 MB": lambda: hostile.png_with(
        packed_text(b"a", bytes(2**20 - 8)) * 64
    ),
    "PNG: EXIF tags": lambda: hostile.png_with(
        hostile.png_chunk(b"eXIf", hostile.exif_of_tags(65_000)[6:])
    ),
    "PNG: an orientation of many fractions": lambda: hostile.png_with(
        hostile.png_chunk(b"eXIf", hostile.exif_of_fractions(3_000_000)[6:])
    ),
    "WebP: chunks": lambda: hostile.webp_with(hostile.webp_chunk(b"abcd", b"") * 2_900_000),
    "WebP: an orientation of many fractions": lambda: hostile.webp_with(
        hostile.webp_chunk(b"EXIF", hostile.exif_of_fractions(3_000_000)[6:])
    ),
    "TIFF: tags": lambda: hostile.tiff_with(*[(1000 + i, 3, [1]) for i in range(60_000)], big=True),
    "TIFF: a resolution of many fractions": lambda: hostile.tiff_with((282, 5, [1] * 6_000_000)),
    "TIFF: bits of many samples": lambda: hostile.tiff(
        [tag for tag in hostile.tiff_tags(8, 8) if tag[0] != 258]
        + [(258, 3, [8] * 12_000_000), (278, 4, [8]), (273, 4, [-1]), (279, 4, [64])],
        bytes(64),
    ),
    "TIFF: fractions in the EXIF directory": lambda: (
        hostile.tiff_with((34665, 4, [-1]))[:-64] + EXIF_IFD + bytes(20_000)
    ),
    "TIFF: tiles of 16 pixels": lambda: hostile.tiff_of_tiles(6300, 6300, (4, 4)),
    "TIFF: tiles that are mostly outside": lambda: hostile.tiff_of_tiles(20_000, 1, (16, 250_000)),
    "TIFF: a fax": lambda: hostile.tiff_of_strips(8, 20_000, 20_000, compression=3),
    "TIFF: big-endian BigTIFF": lambda: b"MM\0+" + bytes(100),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_costs_minutes_to_parse_is_refused_in_one_sentence(name: str) -> None:
    body = HOSTILE[name]()
    began = time.thread_time()
    with pytest.raises(RequestError) as caught:
        decode_one(body)
    assert caught.value.status == 422
    assert "damaged" not in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200
    # Without the limits these take up to 18 s; with them 0.1 s.
    assert time.thread_time() - began < 2


def decode_one(body: bytes) -> None:
    with PixelBudget(time.monotonic() + 60) as budget:
        records = read_records("application/octet-stream", body, budget)
        to_pixels(records, budget, image_size=32, channels=1)


@pytest.mark.parametrize(
    ("body", "megabytes"),
    [
        pytest.param(lambda: HOSTILE["JPEG: empty segments"](), 64, id="empty segments"),
        pytest.param(lambda: HOSTILE["TIFF: bits of many samples"](), 64, id="bits of samples"),
        pytest.param(
            lambda: hostile.png_bomb(6300, 6300, colour=6, size=6300 * (6300 * 4 + 1)),
            450,
            id="transparency",
        ),
        pytest.param(
            lambda: hostile.saved(
                Image.new("RGB", (6300, 6300)), "JPEG", progressive=True, subsampling=0
            ),
            500,
            id="progressive",
        ),
        pytest.param(
            lambda: hostile.png_bomb(3100, 3100, 16, 6, size=3100 * (3100 * 8 + 1)),
            300,
            id="16 bits per colour",
        ),
    ],
)
def test_the_memory_of_a_request_has_an_end(body: Callable[[], bytes], megabytes: int) -> None:
    assert cost_of("application/octet-stream", body()).megabytes < megabytes


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(hostile.jpeg_of_scans(10), id="JPEG of 20 scans"),
        pytest.param(
            hostile.jpeg_with(hostile.jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000)) * 30),
            id="JPEG with 2 MB of metadata",
        ),
        pytest.param(
            hostile.png_with(packed_text(b"XML:com.adobe.xmp", b"a" * 3_000_000)),
            id="PNG with 3 MB of metadata",
        ),
        pytest.param(
            hostile.saved(hostile.noise(1500, 1500), "TIFF", compression="tiff_lzw"),
            id="TIFF of strips",
        ),
        pytest.param(hostile.tiff_of_strips(20, 20_000, 1), id="TIFF of one strip per row"),
        pytest.param(hostile.tiff_of_tiles(176, 208, (256, 256)), id="TIFF of one tile"),
        pytest.param(hostile.tiff_of_tiles(1000, 1000, (16, 16)), id="TIFF of small tiles"),
        pytest.param(
            hostile.saved(
                Image.new("L", (8, 8)),
                "WEBP",
                save_all=True,
                append_images=[Image.new("L", (8, 8), i) for i in range(100)],
            ),
            id="WebP of 100 frames",
        ),
        pytest.param(
            hostile.saved(
                Image.new("L", (8, 8)),
                "TIFF",
                save_all=True,
                append_images=[Image.new("L", (8, 8), i) for i in range(100)],
            ),
            id="TIFF of 100 pages",
        ),
        pytest.param(
            hostile.png_bomb(3000, 3000, 16, 2, size=3000 * (3000 * 6 + 1)), id="16-bit colour"
        ),
    ],
)
def test_an_unusual_file_that_costs_little_is_taken(body: bytes) -> None:
    _, (error,) = pixels_of("application/octet-stream", body)
    assert error is None


def test_headers_of_a_form_have_an_end() -> None:
    for body in (
        PART + b"a:b\r\n" * 4_000_000 + b"\r\nabc\r\n--x--\r\n",
        PART + b"\r\nabc\r\n" + PART + b"a:b\r\n" * 10_000 + b"\r\nabc\r\n--x--\r\n",
        PART + b"\r\n" + b"--x" * 20_000 + b"\r\n--x--\r\n",
    ):
        with pytest.raises(RequestError) as caught:
            pixels_of(FORM, body)
        assert caught.value.status == 413
    body = PART + b"a: b\r\n\r\n" + hostile.PNG + b"\r\n--x--\r\n"
    _, (error,) = pixels_of(FORM, body)
    assert error is None


def numbers_of(count: int) -> bytes:
    return b'{"image":[' + b",".join([b"[" + b"117," * 999 + b"117]"] * (count // 1000)) + b"]}"


@pytest.mark.parametrize(
    "body",
    [numbers_of(5_500_000), as_json([[]] * 400_000), as_json([""] * 400_000)],
    ids=["numbers", "lists", "strings"],
)
def test_json_of_many_numbers_is_refused_with_another_way(body: bytes) -> None:
    with pytest.raises(RequestError, match="application/x-npy") as caught:
        pixels_of("application/json", body)
    assert caught.value.status == 413


def test_other_threads_run_while_json_is_parsed() -> None:
    body = numbers_of(MAX_JSON_VALUES)
    turns: list[float] = []
    over = threading.Event()

    def take_turns() -> None:
        while not over.is_set():
            turns.append(time.monotonic())
            time.sleep(0.001)

    other = threading.Thread(target=take_turns)
    other.start()
    try:
        began = time.monotonic()
        with PixelBudget(began + 60) as budget:
            read_records("application/json", body, budget)
        seconds = time.monotonic() - began
    finally:
        over.set()
        other.join()
    # Held by json.loads and by numpy, it got 3 turns of more than a third of the time each.
    longest = max(later - earlier for earlier, later in itertools.pairwise(turns))
    assert longest < seconds / 5
    assert len(turns) > seconds / (10 * sys.getswitchinterval())


def test_decoding_ends_at_the_deadline() -> None:
    body = hostile.saved(hostile.noise(3000, 3000), "PNG")
    for at_the_end in (PixelBudget(time.monotonic()), ExpiresInside()):
        with pytest.raises(RequestError) as caught, at_the_end as budget:
            to_pixels([body], budget, image_size=32, channels=1)
        assert caught.value.status == 503


class ExpiresInside(PixelBudget):
    """A budget whose deadline comes after the header of the first image."""

    def __init__(self) -> None:
        super().__init__(time.monotonic() + 60)

    def take(self, width: int, height: int) -> None:
        super().take(width, height)
        self._deadline = time.monotonic()


def test_costly_requests_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexmri.serving.decode.MANY_SECONDS", -1)
    with PixelBudget(time.monotonic() + 60) as first:
        first.check_time()
        with pytest.raises(RequestError) as caught, PixelBudget(time.monotonic() + 0.1) as second:
            to_pixels([PNG], second, image_size=32, channels=1)
        assert caught.value.status == 503
    decoded([PNG])


def test_many_costly_images_in_one_request_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexmri.serving.decode.MAX_SECONDS", 0.2)
    body = hostile.saved(hostile.noise(1000, 1000), "PNG")
    with pytest.raises(RequestError, match="send fewer images") as caught:
        decoded([body] * 40)
    assert caught.value.status == 413


def test_the_pixels_of_one_request_are_counted_together() -> None:
    large = file_of("JPEG", size=(3000, 3000))
    _, errors = decoded([large] * 6)
    assert [error and error.status for error in errors] == [None] * 4 + [413] * 2


def test_large_images_are_decoded_one_request_at_a_time() -> None:
    side = int(MANY_PIXELS**0.5) + 1
    with PixelBudget(time.monotonic() + 60) as first:
        first.take(side, side)
        with PixelBudget(time.monotonic() + 60) as small:
            small.take(200, 200)
        with pytest.raises(RequestError) as caught, PixelBudget(time.monotonic()) as second:
            second.take(side, side)
        assert caught.value.status == 503
        # Numbers take much more memory than their bytes, before their pixels can be counted; and
        # parsing takes memory and time for each byte, not only for each pixel.
        for content_type, size in (
            ("application/jsonlines", MANY_NUMBER_BYTES),
            ("application/octet-stream", MANY_BYTES),
            (FORM, MANY_BYTES),
        ):
            with pytest.raises(RequestError) as caught, PixelBudget(time.monotonic()) as large:
                read_records(content_type, b" " * size + b"1", large)
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
    "application/x-image": hostile.jpeg_of_scans(1000),
    "image/x-tiff": hostile.tiff_of_tiles(40, 40, (16, 16)),
    "binary/octet-stream": hostile.jpeg_with(
        hostile.jpeg_segment(0xE1, hostile.exif_of_fractions(10))
    ),
    "file-path/raw-bytes": hostile.webp_with(hostile.webp_chunk(b"EXIF", hostile.exif_of_tags(9))),
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
