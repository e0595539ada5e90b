"""What bench/load_test.py sends: requests that are right, wrong, and meant to hurt.

Each exchange returns what came back as a word for the tally: a status, `closed`, `hung`, or `WRONG`
with a reason. Of a wrong or hostile request the status must be one of those given with it; a server
error (5xx other than 503) never is.
"""

import base64
import contextlib
import io
import json
import pickle
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

# Of a probability: float32 in batches of another size, or bf16, differs by less.
TOLERANCE = 0.02
PATIENCE_SECONDS = 30.0
# More connections with half a request than a server has threads.
CROWD = 40
BUSY = (429, 503)
PNG, JPEG, JSON, NPY = "image/png", "image/jpeg", "application/json", "application/x-npy"


@dataclass(frozen=True)
class SentImage:
    """An encoded image and what the bundle itself says of it."""

    body: bytes
    content_type: str
    expected: Mapping[str, float]


@dataclass(frozen=True)
class Exchange:
    """One request and the statuses that may answer it; None: the server may just close."""

    name: str
    raw: bytes
    allowed: tuple[int | None, ...]


def post(body: bytes, content_type: str = PNG, **headers: str) -> bytes:
    fields = {"Host": "load-test", "Content-Type": content_type, "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /invocations HTTP/1.1\r\n{lines}\r\n".encode() + body


def document(value: Any) -> bytes:
    return post(json.dumps(value).encode(), JSON)


def text_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


# --- right


def right(images: Sequence[SentImage], choose: random.Random) -> tuple[bytes, list[SentImage]]:
    """Return a request for one image or several, and the images it asks for, in order."""
    several = [choose.choice(images) for _ in range(choose.choice((1, 1, 1, 1, 2, 8)))]
    match several:
        case [one] if choose.random() < 0.7:
            return post(one.body, one.content_type), several
        case [one] if choose.random() < 0.5:
            return document({"image": text_of(one.body)}), several
    return document({"instances": [{"b64": text_of(each.body)} for each in several]}), several


def judge(status: int, body: bytes, asked: Sequence[SentImage]) -> tuple[str, float]:
    """Return the word for the tally, and the largest difference of a probability."""
    if status != 200:
        return (str(status) if status in BUSY else f"WRONG: {status}"), 0.0
    predictions = json.loads(body)["predictions"]
    if len(predictions) != len(asked):
        return f"WRONG: {len(predictions)} answers to {len(asked)} images", 0.0
    difference = max(
        abs(prediction["probabilities"][label] - expected)
        for prediction, image in zip(predictions, asked, strict=True)
        for label, expected in image.expected.items()
    )
    return ("200" if difference <= TOLERANCE else "WRONG: another answer"), difference


# --- wrong


def wrong(image: bytes) -> list[Exchange]:
    return [
        Exchange("empty", post(b""), (400, 422)),
        Exchange("junk", post(b"junk" * 100), (400, 422)),
        Exchange("truncated", post(image[: len(image) // 2]), (400, 422)),
        Exchange("unknown type", post(b"<p>", "text/html"), (415,)),
        Exchange("no JSON", post(b"{", JSON), (400,)),
        Exchange("JSON of another shape", document({"images": 1}), (400, 422)),
        Exchange("bad base64", document({"image": "?" * 99}), (400, 422)),
        Exchange("unwanted answer", post(image, Accept="image/gif"), (406,)),
        Exchange("wrong method", b"GET /invocations HTTP/1.1\r\nHost: load-test\r\n\r\n", (405,)),
        Exchange("unknown path", b"GET /etc/passwd HTTP/1.1\r\nHost: load-test\r\n\r\n", (404,)),
    ]


# --- hostile


def hostile(image: bytes, jpeg: bytes) -> list[Callable[[random.Random], Exchange]]:
    """Return makers of requests that mean harm; what one sends may differ each time."""
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fixed = [
        Exchange("bomb that says so", post(png_of_size(60_000, 60_000)), (400, 413, 422)),
        Exchange("bomb over the limit", post(black(12_000)), (400, 413, 422)),
        Exchange("large image", post(black(4_000)), (200, 400, 413, 422)),
        Exchange("JPEG of many scans", post(many_scans(1000), JPEG), (400, 413, 422)),
        Exchange("thin image", post(png_of_size(1_000_000, 1)), (400, 413, 422)),
        Exchange("long string", document({"image": [["x" * 10_000, *[1] * 1000]]}), (400, 422)),
        Exchange("deep JSON", post(b"[" * 100_000, JSON), (400, 413)),
        Exchange("many images", document({"instances": [{"b64": "AAAA"}] * 2000}), (400, 413)),
        Exchange("pickle", post(pickle.dumps(print), NPY), (400, 415, 422)),
        Exchange("pickled array", post(pickled.getvalue(), NPY), (400, 415, 422)),
        Exchange("too much", post(bytes(40_000_000)), (413, None)),
        Exchange("not HTTP", bytes(range(256)) * 8, (400, None)),
        Exchange("endless header", post(image, X="x" * 200_000), (400, 431, None)),
        Exchange("two lengths", post(b"AA", Content_length="9"), (400, 408, None)),
        Exchange(
            "bad chunks",
            b"POST /invocations HTTP/1.1\r\nHost: load-test\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nAA\r\n0\r\n\r\n",
            (400, None),
        ),
    ]

    def mutated(choose: random.Random) -> Exchange:
        # A JPEG has no checksums: most of these are images still.
        body = bytearray(choose.choice((image, jpeg)))
        for _ in range(choose.randint(1, 40)):
            body[choose.randrange(len(body))] = choose.randrange(256)
        return Exchange("mutated", post(bytes(body)), (200, 400, 413, 422))

    def broken_off(choose: random.Random) -> Exchange:
        whole = post(image)
        return Exchange("broken off", whole[: choose.randrange(1, len(whole))], ())

    def not_awaited(choose: random.Random) -> Exchange:
        return Exchange("not awaited", post(image), ())

    same = [lambda _, exchange=exchange: exchange for exchange in fixed]
    crowd = Exchange("crowd", post(image)[:200], ())
    return [*same, mutated, mutated, mutated, broken_off, not_awaited, lambda _: crowd]


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of 70 bytes that claims to be this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def black(side: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("1", (side, side)).save(encoded, "PNG")
    return encoded.getvalue()


def many_scans(times: int) -> bytes:
    """Return a progressive JPEG with one of its scans, 14 bytes, so many times more."""
    encoded = io.BytesIO()
    Image.new("L", (1900, 1900)).save(encoded, "JPEG", progressive=True)
    data = encoded.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + data[-2:]


# --- sending


def carry_out(exchange: Exchange, port: int, choose: random.Random) -> str:
    """Send it on a connection of its own; return the word for the tally."""
    if not exchange.allowed:
        abandon(exchange, port, choose)
        return "left"
    try:
        status, _ = send(exchange.raw, port)
    except TimeoutError:
        return "hung"
    except OSError:
        status = None
    if status in exchange.allowed or status in BUSY:
        return "closed" if status is None else str(status)
    return f"WRONG: {exchange.name}: {status or 'closed without an answer'}"


def abandon(exchange: Exchange, port: int, choose: random.Random) -> None:
    """Send it, slowly or at once, and leave without an answer, politely or by a reset."""
    many = CROWD if exchange.name == "crowd" else 1
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
            )
            for _ in range(many)
        ]
        half = len(exchange.raw) // 2
        for connection in connections:
            connection.sendall(exchange.raw[:half])
        time.sleep(choose.choice((0.0, 1.0)))
        for connection in connections:
            # A server may have lost its patience by now.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(exchange.raw[half:])
            if choose.random() < 0.5:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def send(raw: bytes, port: int) -> tuple[int, bytes]:
    """Send a request on a new connection; return status and body of its answer.

    Raises:
        TimeoutError: nothing came for 30 s.
        OSError: the server closed without an answer.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        # It may have answered before it had read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(raw)
        return receive(connection)


def receive(connection: socket.socket) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    while len(body) < int(fields.get(b"content-length", b"0")):
        body += _more(connection)
    return int(head[9:12]), body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionResetError("closed without an answer")
    return data
