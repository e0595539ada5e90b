"""Serve right, wrong and hostile requests for half an hour; count what must never happen.

    python bench/load_test.py --bundle DIR [--images DIR] [--minutes 30] [--json FILE]

The server is `container/serve` as it comes. Every answer is compared with what the bundle says when
asked directly, image by image; `different_images` says how many of them have answers far enough
apart for a mix-up to show. `memory_growth` is the median proportional set size of the last tenth of
the time over that of the second tenth; the first warms up. Without --images synthetic slices are
sent. The exit code is 1 if an answer was wrong, a request hung, or a worker restarted.
"""

import argparse
import base64
import io
import json
import pickle
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from server import OURS, Server, running

from alexmri.data.phantom import write_demo_data
from alexmri.model.predictor import Predictor, ranked
from alexmri.training.provenance import machine_document

RIGHT_CLIENTS, WRONG_CLIENTS = 6, 3
MAX_IMAGES = 200
# Of a probability: float32 in batches of another size, or bf16, differs by less.
TOLERANCE = 0.02
PATIENCE_SECONDS = 30.0
BUSY = (429, 503)
PNG, JPEG, JSON, NPY = "image/png", "image/jpeg", "application/json", "application/x-npy"
SAID = (400, 413, 422)


class SentImage(NamedTuple):
    """An encoded image and what the bundle itself says of it."""

    body: bytes
    content_type: str
    expected: Mapping[str, float]


class Exchange(NamedTuple):
    """A request and the statuses that may answer it; None: the server may just close.

    No statuses: the client leaves without an answer.
    """

    name: str
    raw: bytes
    allowed: tuple[int | None, ...]


def post(body: bytes, content_type: str = PNG, **headers: str) -> bytes:
    fields = {"Host": "load-test", "Content-Type": content_type, "Content-Length": str(len(body))}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in (fields | headers).items()]
    return f"POST /invocations HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


def document(value: Any) -> bytes:
    return post(json.dumps(value).encode(), JSON)


def wrong_requests(png: bytes, jpeg: bytes, choose: random.Random) -> list[Exchange]:
    """Return requests that are wrong or mean harm; the last ones differ each time."""
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    mutated = bytearray(choose.choice((png, jpeg)))
    for _ in range(choose.randint(1, 40)):
        mutated[choose.randrange(len(mutated))] = choose.randrange(256)
    chunked = b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
    return [
        Exchange("empty", post(b""), SAID),
        Exchange("truncated", post(png[: len(png) // 2]), SAID),
        Exchange("unknown type", post(b"<p>", "text/html"), (415,)),
        Exchange("no JSON", post(b"{", JSON), SAID),
        Exchange("JSON of another shape", document({"images": 1}), SAID),
        Exchange("bad base64", document({"image": "?" * 99}), SAID),
        Exchange("unwanted answer", post(png, Accept="image/gif"), (406,)),
        Exchange("wrong method", b"GET /invocations HTTP/1.1\r\nHost: a\r\n\r\n", (405,)),
        Exchange("unknown path", b"GET /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", (404,)),
        Exchange(
            "bomb over the limit", post(encoded(Image.new("1", (12_000, 12_000)), "PNG")), SAID
        ),
        Exchange("large image", post(encoded(Image.new("1", (4_000, 4_000)), "PNG")), (200, *SAID)),
        Exchange("long string", document({"image": [["x" * 10_000, *[1] * 1000]]}), SAID),
        Exchange("deep JSON", post(b"[" * 100_000, JSON), SAID),
        Exchange("pickle", post(pickle.dumps(print), NPY), (415, *SAID)),
        Exchange("pickled array", post(pickled.getvalue(), NPY), (415, *SAID)),
        Exchange("too much", post(bytes(40_000_000)), (413, None)),
        Exchange("not HTTP", bytes(range(256)) * 8, (400, None)),
        Exchange("endless header", post(png, X="x" * 200_000), (400, 431, None)),
        Exchange("two lengths", post(b"AA", content_length="9"), (400, 408, None)),
        Exchange("bad chunks", chunked, (400, None)),
        *[Exchange("mutated", post(bytes(mutated)), (200, *SAID))] * 3,
        Exchange("broken off", post(png)[: choose.randrange(1, len(png))], ()),
        Exchange("not awaited", post(png), ()),
    ]


def encoded(image: Image.Image, kind: str) -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


class LoadTest:
    """Clients in threads, and the tally they share."""

    def __init__(self, port: int, images: Sequence[SentImage]) -> None:
        self._port, self._images = port, images
        self._stop, self._lock = threading.Event(), threading.Lock()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.slowest_ms: dict[str, float] = defaultdict(float)
        self.largest_difference = 0.0

    def run(self, server: Server, seconds: float) -> dict[str, Any]:
        """Return the tally after `seconds` of traffic."""
        kinds = [self._ask_right] * RIGHT_CLIENTS + [self._ask_wrong] * WRONG_CLIENTS
        threads = [
            threading.Thread(target=kind, args=(random.Random(number),))  # noqa: S311
            for number, kind in enumerate(kinds)
        ]
        at_start, appeared, memory = server.pids(), set[int](), []
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and server.process.poll() is None:
            time.sleep(min(5.0, left, seconds / 20))
            appeared |= server.pids() - at_start
            memory.append(server.memory_mib())
        self._stop.set()
        for thread in threads:
            thread.join()
        tenth = max(1, len(memory) // 10)
        early, late = memory[tenth : 2 * tenth], memory[-tenth:]
        every = sum(self.outcomes.values(), Counter[str]())
        return {
            "requests": every.total(),
            "worker_restarts": len(appeared),
            "processes_lost": len(at_start - server.pids()),
            "memory_growth": statistics.median(late) / statistics.median(early) - 1,
            "wrong": {name: n for name, n in every.items() if name.startswith("WRONG")},
            "hung": every["hung"],
            "largest_difference": self.largest_difference,
            "slowest_ms": dict(self.slowest_ms),
            "outcomes": {name: dict(found) for name, found in sorted(self.outcomes.items())},
            "memory_mib": memory,
        }

    def _ask_right(self, choose: random.Random) -> None:
        """Ask for one image or several, up to 200 times on a connection, and check every answer."""
        while not self._stop.is_set():
            with closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS)) as link:
                for _ in range(200):
                    asked = [
                        choose.choice(self._images) for _ in range(choose.choice((1, 1, 2, 8)))
                    ]
                    body, kind = asked[0].body, asked[0].content_type
                    if len(asked) > 1 or choose.random() < 0.3:
                        texts = [base64.b64encode(each.body).decode() for each in asked]
                        document = {"instances": [{"b64": text} for text in texts]}
                        body, kind = json.dumps(document).encode(), JSON
                    began = time.perf_counter()
                    try:
                        link.request("POST", "/invocations", body, {"Content-Type": kind})
                        answer = link.getresponse()
                        outcome = self._judge(answer.status, answer.read(), asked)
                    except TimeoutError:
                        outcome = "hung"
                    except (OSError, HTTPException) as error:
                        outcome = f"WRONG: {type(error).__name__}"
                    self._note("right", outcome, began)
                    if self._stop.is_set() or outcome != "200":
                        break

    def _judge(self, status: int, body: bytes, asked: Sequence[SentImage]) -> str:
        if status != 200:
            return str(status) if status in BUSY else f"WRONG: {status}"
        predictions = json.loads(body)["predictions"]
        if len(predictions) != len(asked):
            return f"WRONG: {len(predictions)} answers to {len(asked)} images"
        difference = max(
            abs(prediction["probabilities"][label] - expected)
            for prediction, image in zip(predictions, asked, strict=True)
            for label, expected in image.expected.items()
        )
        with self._lock:
            self.largest_difference = max(self.largest_difference, difference)
        return "200" if difference <= TOLERANCE else "WRONG: another answer"

    def _ask_wrong(self, choose: random.Random) -> None:
        png, jpeg = (each.body for each in self._images[:2])
        while not self._stop.is_set():
            exchanges = wrong_requests(png, jpeg, choose)
            choose.shuffle(exchanges)
            for exchange in exchanges:
                began = time.perf_counter()
                self._note(exchange.name, carry_out(exchange, self._port, choose), began)
                if self._stop.wait(0.05):
                    break

    def _note(self, name: str, outcome: str, began: float) -> None:
        ms = (time.perf_counter() - began) * 1e3
        with self._lock:
            self.outcomes[name][outcome] += 1
            self.slowest_ms[name] = max(self.slowest_ms[name], ms)


def carry_out(exchange: Exchange, port: int, choose: random.Random) -> str:
    """Send it on a connection of its own; return what came back as a word for the tally."""
    status = None
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as link:
            if not exchange.allowed:
                link.sendall(exchange.raw)
                time.sleep(choose.choice((0.0, 1.0)))
                if choose.random() < 0.5:  # leave by a reset
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "left"
            # The server may answer before it has read everything.
            with suppress(BrokenPipeError, ConnectionResetError):
                link.sendall(exchange.raw)
            with HTTPResponse(link) as answer:
                answer.begin()
                status = answer.status
                answer.read()
    except TimeoutError:
        return "hung"
    except (OSError, HTTPException):
        pass
    if status in exchange.allowed or status in BUSY:
        return str(status or "closed")
    return f"WRONG: {exchange.name}: {status or 'closed without an answer'}"


def images_of(folder: Path, predictor: Predictor) -> list[SentImage]:
    """Return up to 200 images below `folder`, as PNG and as JPEG, with the bundle's answers."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    found = []
    for path in paths[:: -(-len(paths) // MAX_IMAGES) or 1]:
        with Image.open(path) as opened:
            for kind, content_type in (("PNG", PNG), ("JPEG", JPEG)):
                body = encoded(opened, kind)
                pixels_NCHW = predictor.pixels(body)[None]
                (row_K,) = predictor.predict(pixels_NCHW).probabilities_NK
                expected = ranked(predictor.bundle.classes, row_K)
                found.append(SentImage(body, content_type, expected))
    return found


def different(images: Sequence[SentImage]) -> int:
    """Return how many images have an answer that no earlier one has within the tolerance."""
    kept: list[Mapping[str, float]] = []
    for _, _, one in images:
        apart = (max(abs(one[label] - other[label]) for label in one) for other in kept)
        if all(difference > 2 * TOLERANCE for difference in apart):
            kept.append(one)
    return len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a model directory")
    parser.add_argument("--images", type=Path, help="a folder of slices")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    predictor = Predictor.load(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            write_demo_data(Path(folder))
        images = images_of(options.images or Path(folder), predictor)
    if not images:
        raise SystemExit(f"{options.images} holds no .jpg or .png image; name a folder with slices")
    with running(OURS, options.bundle, {}) as server:
        server.wait_for("POST", "/invocations", images[0].body)
        result = LoadTest(server.port, images).run(server, options.minutes * 60)
        server.process.terminate()
        result["exit_code"] = server.process.wait(timeout=60)
    result = {"minutes": options.minutes, "different_images": different(images), **result}
    print(json.dumps({k: v for k, v in result.items() if k != "memory_mib"}, indent=2))
    if options.json:
        machine = machine_document(predictor.compute.device, predictor.compute.precision)
        options.json.write_text(json.dumps(result | {"machine": machine}, indent=2) + "\n")
    sys.exit(bool(result["wrong"] or result["hung"] or result["worker_restarts"]))


if __name__ == "__main__":
    main()
