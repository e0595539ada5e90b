"""What the server tells about itself: metrics for Prometheus, and one line per request."""

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from alexmri.serving.options import Options

# Where several processes keep their figures, for whichever is asked for all of them.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

# How long a note may wait to be counted and logged.
MOMENT_S = 0.25
# More of them than any moment has; where the thread that counts has died they take no more memory.
MOST_NOTES = 100_000
# Time of day, status, seconds, labels, facts.
Note = tuple[float, int, float, Sequence[str], Mapping[str, str]]


class Queue(Protocol):
    """What waits before the model."""

    @property
    def queued(self) -> int: ...


class Telemetry:
    """Counts and logs; one per process, read for all processes together."""

    def __init__(self, options: Options) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "alexmri_requests", "Answers by HTTP status", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "alexmri_request_seconds",
            "From the first byte of a request to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "alexmri_queue_seconds",
            "From decoded pictures to the start of their batch",
            buckets=SECONDS,
            registry=registry,
        )
        self._forward = Histogram(
            "alexmri_forward_seconds",
            "One forward pass of the model",
            buckets=SECONDS,
            registry=registry,
        )
        self._batch = Histogram(
            "alexmri_batch_size", "Pictures in a forward pass", buckets=SIZES, registry=registry
        )
        self._predictions = Counter(
            "alexmri_predictions", "Pictures by predicted class", ["label"], registry=registry
        )
        self._model = Gauge(
            "alexmri_model_info",
            "1 for the version of the model that answers",
            ["version"],
            registry=registry,
            multiprocess_mode="max",
        )
        self._waiting = Gauge(
            "alexmri_queued_requests",
            "Requests that wait for their batch",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._waiting_in: Queue | None = None
        self._json = options.log_json
        self._log_level = options.log_level
        self._noted: deque[Note] = deque(maxlen=MOST_NOTES)
        self._batches: deque[tuple[int, float, Sequence[float]]] = deque(maxlen=MOST_NOTES)
        self._writing = threading.Lock()
        threading.Thread(target=self._write_for_ever, name="telemetry", daemon=True).start()

    def model(self, version: str, queue: Queue) -> None:
        """Note which model answers, and where requests wait for it."""
        self._model.labels(version).set(1)
        self._waiting_in = queue

    def batch(self, pictures: int, seconds: float, waits: Sequence[float]) -> None:
        """Note a forward pass and how long its requests had waited for it."""
        self._batches.append((pictures, seconds, waits))

    def request(
        self, status: int, seconds: float, labels: Sequence[str], facts: Mapping[str, str]
    ) -> None:
        """Note an answer; its line, with the `facts` that have a value, is logged a moment later.

        Counting and writing here would cost each request 0.1 ms (measured under load), and all of
        a moment together cost a fifth of that.
        """
        self._noted.append((time.time(), status, seconds, labels, facts))

    def flush(self) -> None:
        """Count and log what was noted."""
        with self._writing:
            if self._waiting_in is not None:
                self._waiting.set(self._waiting_in.queued)
            while self._batches:
                pictures, seconds, waits = self._batches.popleft()
                self._batch.observe(pictures)
                self._forward.observe(seconds)
                for wait in waits:
                    self._queue.observe(wait)
            lines: list[str] = []
            while self._noted:
                note = self._noted.popleft()
                _, status, seconds, labels, _ = note
                self._requests.labels(status).inc()
                self._seconds.observe(seconds)
                for label in labels:
                    self._predictions.labels(label).inc()
                if (logging.INFO if status < 400 else logging.WARNING) >= self._log_level:
                    lines.append(self._line(note))
            if lines:
                # Nobody reads the log any more, or its disk is full: the server goes on.
                with contextlib.suppress(OSError, ValueError):
                    print("\n".join(lines), flush=True)

    def exposition(self) -> bytes:
        """Return the metrics of all processes as Prometheus reads them."""
        self.flush()
        registry = self._registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(MOMENT_S)
            self.flush()

    def _line(self, note: Note) -> str:
        when, status, seconds, labels, facts = note
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
            "event": "request",
            "status": status,
            "ms": round(seconds * 1000, 2),
            "pictures": len(labels),
            **{name: value for name, value in facts.items() if value},
        }
        if self._json:
            return json.dumps(line)
        return " ".join(f"{name}={_word(value)}" for name, value in line.items())


def _word(value: object) -> str:
    """Return a value as one word: what a client sent cannot end the line or forge another field."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)
