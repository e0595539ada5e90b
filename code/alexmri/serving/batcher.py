"""Gather the images of waiting requests into batches for the one thread that owns the model.

A batch takes everything that waits, up to the maximum size. A request that is alone never waits for
others. Under load the clients of the last batch come back at once, so a batch gives them a moment:
else two half batches take turns, and the model's thread needs 1.47 ms for an image instead of 1.16
(64 connections, two cores, AVX512-BF16). A request that cannot be answered before its deadline is
refused at once, by a table of how long batches take, and not after it has waited.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from alexmri.data.pixels import Pixels
from alexmri.serving.request_error import RequestError, too_late

# A batch waits no longer than this share of a lone image's time for the next one to come back.
PAUSE_SHARE = 0.5


class Sliceable(Protocol):
    """The results of a batch: row i belongs to image i."""

    def __getitem__(self, rows: slice, /) -> "Sliceable": ...


Rows = TypeVar("Rows", bound=Sliceable)


class LatencyModel:
    """How long a forward pass takes by batch size, in seconds, between and beyond what was timed.

    Args:
        timed: batch size -> seconds, of at least one size.
    """

    def __init__(self, timed: dict[int, float]) -> None:
        self.timed = dict(sorted(timed.items()))
        self.max_batch_size = max(timed)
        # Never less for more images, whatever disturbed the clock.
        seconds = np.maximum.accumulate(list(self.timed.values()))
        sizes = range(self.max_batch_size + 1)
        self._seconds = [0.0, *np.interp(sizes, list(self.timed), seconds).tolist()[1:]]

    def seconds(self, images: int) -> float:
        """Return the time for `images`, in as many batches as they need."""
        full, rest = divmod(images, self.max_batch_size)
        return full * self._seconds[-1] + self._seconds[rest]

    def images_within(self, seconds: float, overhead_s: float = 0.0) -> int:
        """Return how many images are computed in so many seconds, in batches of the maximum size.

        Each takes `overhead_s` more than its part of the batch.
        """
        return int(seconds / (self._seconds[-1] / self.max_batch_size + overhead_s))


class _Job:
    """One request that waits: its thread sleeps on a lock that the model's thread opens."""

    __slots__ = ("deadline", "done", "error", "pixels_NCHW", "queued", "rows")

    def __init__(self, pixels_NCHW: Pixels, now: float, deadline: float) -> None:
        self.pixels_NCHW = pixels_NCHW
        self.queued = now
        self.deadline = deadline
        self.rows: Sliceable | None = None
        self.error: Exception | None = None
        # A bare lock: half the cost of an Event, and there is one per request.
        self.done = threading.Lock()
        self.done.acquire()


class Batcher(Generic[Rows]):
    """A bounded queue before a model, and the thread that empties it.

    Args:
        forward: images (N, C, S, S) -> their N results; only ever called by one thread.
        probe: an image (1, C, S, S) that the model computes after an error, to learn whether the
            error was the request's or the model's.
        latency: how long `forward` takes.
        capacity: images that may wait or be computed; more are refused.
        delay_s: how long a batch that is not full waits for more.
        on_death: called once by the model's thread when it can answer no more.
        on_batch: called after each batch with its images, its seconds, and the seconds for which
            each of its requests had waited.
    """

    def __init__(
        self,
        forward: Callable[[Pixels], Rows],
        probe: Pixels,
        latency: LatencyModel,
        *,
        capacity: int,
        delay_s: float,
        on_death: Callable[[BaseException], None],
        on_batch: Callable[[int, float, Sequence[float]], None],
    ) -> None:
        self.latency = latency
        self.capacity = capacity
        self._forward = forward
        self._probe = probe
        self._delay_s = delay_s
        self._on_death = on_death
        self._on_batch = on_batch
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._running = 0
        self._running_until = 0.0
        # Images that waited or were computed when the last batch was done.
        self._in_flight = 0
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def submit(self, pixels_NCHW: Pixels, deadline: float) -> Rows:
        """Return the results for one request, which must be there at `deadline` (monotonic clock).

        Raises:
            RequestError: 429 the queue is full; 503 the deadline has passed, or would.
            Exception: what `forward` raised for this batch.
        """
        job = _Job(pixels_NCHW, time.monotonic(), deadline)
        with self._changed:
            self._admit(job)
            self._queue.append(job)
            self._waiting += len(pixels_NCHW)
            self._changed.notify()
        # Left in the queue when its time is over: the model's thread passes over it.
        if not job.done.acquire(timeout=max(0.0, deadline - job.queued)):
            raise too_late()
        if job.error is not None:
            raise job.error
        return job.rows  # type: ignore[return-value]

    @property
    def queued(self) -> int:
        """How many requests wait for their batch."""
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether no more images may wait."""
        return self._waiting + self._running >= self.capacity

    def require_room(self) -> None:
        """Refuse while the queue is full, before work is put into a request.

        Raises:
            RequestError: 429.
        """
        if self.is_full:
            raise RequestError(
                429,
                "too_many_requests",
                "the queue is full; try again later",
                max(1, math.ceil(self.latency.seconds(self.capacity))),
            )

    def _admit(self, job: _Job) -> None:
        self.require_room()
        running = max(0.0, self._running_until - job.queued) if self._running else 0.0
        waiting = self.latency.seconds(self._waiting + len(job.pixels_NCHW))
        if job.queued + running + waiting > job.deadline:
            raise too_late()

    def _run(self) -> None:
        try:
            while True:
                self._answer(self._take())
        except BaseException as error:
            self._on_death(error)

    def _take(self) -> list[_Job]:
        """Return the next batch: what waits, in its order, as far as it fits; at least one."""
        max_size = self.latency.max_batch_size
        batch: list[_Job] = []
        taken = 0
        with self._changed:
            while not self._queue:
                self._changed.wait()
            until = self._queue[0].queued + self._delay_s
            while self._waiting < max_size and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self._wait_for_the_last_ones()
            now = time.monotonic()
            while self._queue and (
                not batch or taken + len(self._queue[0].pixels_NCHW) <= max_size
            ):
                job = self._queue.popleft()
                self._waiting -= len(job.pixels_NCHW)
                if job.deadline > now:
                    batch.append(job)
                    taken += len(job.pixels_NCHW)
            self._running = taken
            self._running_until = now + self.latency.seconds(taken)
        return batch

    def _wait_for_the_last_ones(self) -> None:
        """Wait, for a batch's time at most, while the clients of the last batch come back."""
        wanted = min(self._in_flight, self.latency.max_batch_size)
        until = time.monotonic() + self.latency.seconds(wanted)
        while self._waiting < wanted and time.monotonic() < until:
            if not self._changed.wait(PAUSE_SHARE * self.latency.seconds(1)):
                return

    def _answer(self, batch: list[_Job]) -> None:
        if not batch:
            return
        images = [job.pixels_NCHW for job in batch]
        began = time.monotonic()
        try:
            rows = self._forward(images[0] if len(batch) == 1 else np.concatenate(images))
        except Exception as error:
            self._running = 0
            for job in batch:
                job.error = error
                job.done.release()
            # A fault of the request's pixels is over now; one of the model's (a CUDA error sticks)
            # comes again, and ends this thread.
            self._forward(self._probe)
            return
        # Before the answers, since those who have one may ask again at once.
        self._running = 0
        self._in_flight = self._waiting + sum(map(len, images))
        start = 0
        for job in batch:
            stop = start + len(job.pixels_NCHW)
            job.rows = rows[start:stop]
            job.done.release()
            start = stop
        waits = [began - job.queued for job in batch]
        self._on_batch(start, time.monotonic() - began, waits)
