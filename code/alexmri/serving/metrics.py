"""What the server tells about itself: metrics for Prometheus, and one line per request."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from alexmri.serving import shared
from alexmri.serving.config import Config

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Queue(Protocol):
    """What waits before the model."""

    @property
    def queued(self) -> int: ...


class Metrics:
    """Counts and logs; one per process, read for all processes together."""

    def __init__(self, config: Config) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "alexmri_requests", "Answers by HTTP status", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "alexmri_request_seconds",
            "From the head of a request to its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self._queue = Histogram(
            "alexmri_queue_seconds",
            "From decoded images to the start of their batch",
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
            "alexmri_batch_size", "Images in a forward pass", buckets=SIZES, registry=registry
        )
        self._predictions = Counter(
            "alexmri_predictions", "Images by predicted class", ["label"], registry=registry
        )
        self._model = Gauge(
            "alexmri_model_info",
            "1 for the version of the model that answers",
            ["version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._queued = Gauge(
            "alexmri_queued_requests",
            "Requests that wait for their batch",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._waiting_in: Queue | None = None
        self._json = config.log_json
        self._log_level = config.log_level

    def model(self, version: str, queue: Queue) -> None:
        """Note which model answers, and where requests wait for it."""
        self._model.labels(version).set(1)
        self._waiting_in = queue

    def batch(self, images: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a forward pass and how long its requests had waited for it."""
        self._batch.observe(images)
        self._forward.observe(seconds)
        for wait in waits:
            self._queue.observe(wait)
        self._count_queued()

    def request(
        self, status: int, seconds: float, labels: Sequence[str], facts: Mapping[str, str]
    ) -> None:
        """Count an answer; log its line, with the `facts` that have a value."""
        self._requests.labels(status).inc()
        self._seconds.observe(seconds)
        for label in labels:
            self._predictions.labels(label).inc()
        if (logging.INFO if status < 400 else logging.WARNING) < self._log_level:
            return
        # Nobody reads the log any more, or its disk is full: the server goes on.
        with contextlib.suppress(OSError, ValueError):
            # In one piece, so that lines of several threads do not mix.
            print(f"{self._line(status, seconds, labels, facts)}\n", end="", flush=True)

    def exposition(self) -> bytes:
        """Return the metrics of all processes as Prometheus reads them."""
        self._count_queued()
        registry = self._registry
        if shared.METRICS in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _count_queued(self) -> None:
        if self._waiting_in is not None:
            self._queued.set(self._waiting_in.queued)

    def _line(
        self, status: int, seconds: float, labels: Sequence[str], facts: Mapping[str, str]
    ) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "request",
            "status": status,
            "ms": round(seconds * 1000, 2),
            "images": len(labels),
            **{name: value for name, value in facts.items() if value},
        }
        if self._json:
            return json.dumps(line)
        return " ".join(f"{name}={_word(value)}" for name, value in line.items())


def _word(value: object) -> str:
    """Return a value as one word: what a client sent cannot end the line or forge another field."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)
