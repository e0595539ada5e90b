"""Serve right, wrong and hostile requests for half an hour; count what must never happen.

    python bench/load_test.py --bundle DIR [--images DIR] [--minutes 30] [--json FILE]

The server is `container/serve` as it comes. Answers are compared with what the bundle says when
asked directly, image by image; `different_images` says how many of them have answers far
enough apart for a mix-up to show. `memory_growth` is the median proportional set size of the last
tenth of the time over that of the second tenth; the first warms up. Without --images synthetic
slices are sent.
"""

import argparse
import io
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from load_requests import (
    PATIENCE_SECONDS,
    TOLERANCE,
    Exchange,
    SentImage,
    carry_out,
    hostile,
    judge,
    receive,
    right,
    wrong,
)
from peers.serve_model import forward
from PIL import Image
from servers import Payload, Server, ours, running

from alexmri.data.phantom import write_demo_data
from alexmri.model.predictor import Predictor, ranked
from alexmri.training.provenance import machine_document

RIGHT_CLIENTS, WRONG_CLIENTS, HOSTILE_CLIENTS = 6, 1, 2
MAX_IMAGES = 200
SAMPLE_SECONDS = 5.0
# Between two requests of a client that is wrong or means harm.
PAUSE_SECONDS = 0.05


class LoadTest:
    """Clients in threads, and the tally they share."""

    def __init__(self, port: int, images: list[SentImage]) -> None:
        self._port, self._images = port, images
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.slowest_ms: dict[str, float] = defaultdict(float)
        self.largest_difference = 0.0
        png, jpeg = (each.body for each in images[:2])
        self._wrong, self._hostile = wrong(png), hostile(png, jpeg)

    def run(self, server: Server, seconds: float) -> dict[str, Any]:
        """Return the tally after `seconds` of traffic."""
        kinds = [self._right] * RIGHT_CLIENTS + [self._not_right] * WRONG_CLIENTS
        kinds += [self._harmful] * HOSTILE_CLIENTS
        threads = [
            threading.Thread(target=kind, args=(random.Random(number),))  # noqa: S311
            for number, kind in enumerate(kinds)
        ]
        at_start = server.pids()
        appeared: set[int] = set()
        memory = []
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and server.process.poll() is None:
            time.sleep(min(SAMPLE_SECONDS, left, seconds / 20))
            appeared |= server.pids() - at_start
            memory.append(server.memory_mib())
        self._stop.set()
        for thread in threads:
            thread.join()
        tenth = max(1, len(memory) // 10)
        early, late = memory[tenth : 2 * tenth], memory[-tenth:]
        every = Counter[str]()
        for outcomes in self.outcomes.values():
            every += outcomes
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

    def _right(self, choose: random.Random) -> None:
        """Ask on one connection after the other, each for up to 200 requests."""
        while not self._stop.is_set():
            try:
                with socket.create_connection(
                    ("127.0.0.1", self._port), timeout=PATIENCE_SECONDS
                ) as connection:
                    for _ in range(200):
                        if self._stop.is_set():
                            return
                        self._ask(connection, choose)
            except OSError as error:
                self._note("right", f"WRONG: {type(error).__name__}", 0.0)
                self._stop.wait(PAUSE_SECONDS)

    def _ask(self, connection: socket.socket, choose: random.Random) -> None:
        request, asked = right(self._images, choose)
        began = time.perf_counter()
        connection.sendall(request)
        status, body = receive(connection)
        seconds = time.perf_counter() - began
        outcome, difference = judge(status, body, asked)
        self._note("right", outcome, seconds)
        with self._lock:
            self.largest_difference = max(self.largest_difference, difference)

    def _not_right(self, choose: random.Random) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            self._send(choose.choice(self._wrong), choose)

    def _harmful(self, choose: random.Random) -> None:
        while not self._stop.wait(PAUSE_SECONDS):
            self._send(choose.choice(self._hostile)(choose), choose)

    def _send(self, exchange: Exchange, choose: random.Random) -> None:
        began = time.perf_counter()
        try:
            outcome = carry_out(exchange, self._port, choose)
        except OSError as error:
            outcome = f"WRONG: {exchange.name}: no connection: {type(error).__name__}"
        self._note(exchange.name, outcome, time.perf_counter() - began)

    def _note(self, name: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self.outcomes[name][outcome] += 1
            self.slowest_ms[name] = max(self.slowest_ms[name], seconds * 1e3)


def images_of(folder: Path, predictor: Predictor) -> list[SentImage]:
    """Return up to 200 images below `folder`, as PNG and as JPEG, with the bundle's answers."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    found = []
    for path in paths[:: -(-len(paths) // MAX_IMAGES) or 1]:
        with Image.open(path) as opened:
            for kind in ("PNG", "JPEG"):
                encoded = io.BytesIO()
                opened.save(encoded, kind)
                body = encoded.getvalue()
                probabilities_NK = forward(predictor, predictor.pixels(body)[None])
                expected = ranked(predictor.bundle.classes, probabilities_NK[0])
                found.append(SentImage(body, f"image/{kind.lower()}", expected))
    return found


def different(images: list[SentImage]) -> int:
    """Return how many images have an answer that no earlier one has within the tolerance."""
    kept: list[SentImage] = []
    for one in images:
        if all(
            any(abs(p - other.expected[label]) > 2 * TOLERANCE for label, p in one.expected.items())
            for other in kept
        ):
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
        images = options.images
        if images is None:
            images = Path(folder)
            write_demo_data(images)
        images = images_of(images, predictor)
    payload = Payload(images[0].body)
    with running(ours, {}, options.bundle, payload) as server:
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
