"""One client process: send one request over many connections and count what comes back.

    python bench/load.py < JOB.json > RESULT.json

The job's fields are those of `Job`. One thread on epoll and nothing but the standard library, since
the client takes its processor time from the servers it measures; it says how much it took.
HTTP/1.1 with keep-alive, never two requests under way on a connection; every answer is read whole.

Closed loop (no `rate`): each connection sends as soon as it has its answer. Open loop: requests
arrive at random at `rate` per second whatever the server does, and latency counts from the
arrival, so that a server cannot slow its own examiner down; at most `connections` are open.
"""

import base64
import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

# After the end of the load an answer under way is waited for so long.
PATIENCE_SECONDS = 30.0
# A server that breaks so many requests is gone.
MOST_ERRORS = 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to send, how, and for how long; times in seconds."""

    port: int
    connections: int
    seconds: float
    warmup: float = 0.0
    rate: float | None = None
    method: str = "POST"
    path: str = "/invocations"
    content_type: str = "image/png"
    body: str = ""
    """Base64."""
    signal_pid: int | None = None
    """A process that gets SIGTERM at the end of the load, while requests are under way."""

    def request(self) -> bytes:
        body = base64.b64decode(self.body)
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        if body:
            head += f"Content-Type: {self.content_type}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body


@dataclass
class Tally:
    """What came back between warm-up and end; latencies in seconds, by status."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    from_sending: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    errors: Counter[str] = field(default_factory=Counter)
    after_end: Counter[str] = field(default_factory=Counter)
    answered_in_all: int = 0
    latest_start: float = 0.0
    answer: bytes = b""


class Connection:
    __slots__ = ("arrived", "received", "sent", "socket", "under_way")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.under_way = False
        self.arrived = self.sent = 0.0

    def send(self, request: bytes, arrived: float, now: float) -> None:
        self.received, self.arrived, self.sent, self.under_way = b"", arrived, now, True
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes, bool] | None:
        """Return status, body and whether the server closes, once the answer is whole.

        Raises:
            OSError: the connection broke.
        """
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionResetError("closed")
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return None
        lines = head.lower()
        start = lines.find(b"\r\ncontent-length:")
        if start < 0:
            raise OSError("an answer without Content-Length")
        length = int(lines[start + 17 :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return None
        return int(head[9:12]), body, b"\r\nconnection: close" in lines


class Load:
    """The state of one run."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._request = job.request()
        self._poll = select.epoll()
        self._by_number: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self.tally = Tally()

    def run(self) -> dict[str, Any]:
        job, clock = self._job, time.perf_counter
        began = clock()
        self._counted_from, self._end = began + job.warmup, began + job.warmup + job.seconds
        cpu_before = time.process_time()
        if job.rate is None:
            for _ in range(job.connections):
                self._start(clock())
        self._until_end(began)
        cpu = time.process_time() - cpu_before
        if job.signal_pid is not None:
            os.kill(job.signal_pid, signal.SIGTERM)
        unsent = len(self._waiting)
        under_way = sum(each.under_way for each in self._by_number.values())
        self._finish()
        seconds_in_all = clock() - began
        return {
            **self._summary(),
            "seconds_in_all": seconds_in_all,
            "client_cores": cpu / (job.warmup + job.seconds),
            "unsent": unsent,
            "under_way_at_end": under_way,
            "after_end": dict(self.tally.after_end),
        }

    def _until_end(self, began: float) -> None:
        clock, rate = time.perf_counter, self._job.rate
        generator = random.Random(0)  # noqa: S311 - arrivals, not secrets
        arrival = began if rate else float("inf")
        while (now := clock()) < self._end and self.tally.errors.total() < MOST_ERRORS:
            while arrival <= now:
                self.tally.latest_start = max(self.tally.latest_start, now - arrival)
                self._start(arrival)
                arrival += generator.expovariate(rate or 1.0)
            for number, _ in self._poll.poll(max(0.0, min(arrival, self._end) - clock())):
                self._on_answer(self._by_number[number])

    def _start(self, arrived: float) -> None:
        """Send a request on an idle connection, else on a new one, else put it in the queue.

        The one that has rested longest, as if each belonged to another client. The one that rested
        least is one that was just refused, by a process that is full, while others have room.
        """
        if not self._idle and len(self._by_number) >= self._job.connections:
            self._waiting.append(arrived)
            return
        try:
            connection = self._idle.popleft() if self._idle else self._connect()
        except OSError as error:
            self.tally.errors[f"connect: {type(error).__name__}"] += 1
            return
        # The poll reports a broken connection too, and there it is counted.
        with contextlib.suppress(OSError):
            connection.send(self._request, arrived, time.perf_counter())

    def _connect(self) -> Connection:
        connection = Connection(self._job.port)
        self._by_number[connection.socket.fileno()] = connection
        self._poll.register(connection.socket, select.EPOLLIN)
        return connection

    def _on_answer(self, connection: Connection) -> None:
        try:
            answer = connection.receive()
        except OSError as error:
            self._drop(connection, type(error).__name__)
        else:
            if answer is None:
                return
            now = time.perf_counter()
            self._count(connection, answer[0], answer[1], now)
            connection.under_way = False
            if answer[2]:
                self._drop(connection, "")
            else:
                self._idle.append(connection)
        if self._job.rate is None:
            self._start(time.perf_counter())
        elif self._waiting:
            self._start(self._waiting.popleft())

    def _count(self, connection: Connection, status: int, body: bytes, now: float) -> None:
        self.tally.answered_in_all += 1
        if not self._counted_from <= now < self._end:
            return
        self.tally.latencies.setdefault(status, []).append(now - connection.arrived)
        if status == 200:
            self.tally.from_sending.append(now - connection.sent)
            self.tally.answer = body

    def _drop(self, connection: Connection, error: str) -> None:
        """Close; an error counts where an answer was due, not where a server tidied up."""
        if connection.under_way:
            self.tally.errors[error] += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        del self._by_number[connection.socket.fileno()]
        self._poll.unregister(connection.socket)
        connection.socket.close()

    def _finish(self) -> None:
        """Wait for the answers under way; count them by status, and the ones that never came."""
        until = time.perf_counter() + PATIENCE_SECONDS
        pending = [each for each in self._by_number.values() if each.under_way]
        while pending and (left := until - time.perf_counter()) > 0:
            for number, _ in self._poll.poll(left):
                connection = self._by_number[number]
                outcome = ""
                try:
                    if answer := connection.receive():
                        outcome = str(answer[0])
                        self.tally.answered_in_all += 1
                except OSError:
                    outcome = "lost" if connection.under_way else ""
                    self._poll.unregister(connection.socket)
                if outcome:
                    self.tally.after_end[outcome] += 1
                    connection.under_way = False
            pending = [each for each in pending if each.under_way]
        if pending:
            self.tally.after_end["lost"] += len(pending)

    def _summary(self) -> dict[str, Any]:
        tally = self.tally
        good = tally.latencies.get(200, [])
        refused = [s for code, each in tally.latencies.items() if code in (429, 503) for s in each]
        answered = sum(len(each) for each in tally.latencies.values())
        broken = tally.errors.total()
        return {
            "throughput": len(good) / self._job.seconds,
            "p50_ms": quantile_ms(good, 0.50),
            "p99_ms": quantile_ms(good, 0.99),
            "p99_from_sending_ms": quantile_ms(tally.from_sending, 0.99),
            "slowest_ms": quantile_ms(good, 1.0),
            "refused_p99_ms": quantile_ms(refused, 0.99),
            "latest_start_ms": tally.latest_start * 1e3,
            "answered": answered,
            "answered_in_all": tally.answered_in_all,
            "by_status": {str(code): len(each) for code, each in tally.latencies.items()},
            "refused_share": len(refused) / answered if answered else 0.0,
            "errors": answered - len(good) - len(refused) + broken,
            "broken": dict(tally.errors),
            "answer": tally.answer.decode(errors="replace"),
        }


def quantile_ms(seconds: list[float], q: float) -> float | None:
    """Return the quantile in milliseconds, the nearest rank; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3


if __name__ == "__main__":
    print(json.dumps(Load(Job(**json.load(sys.stdin))).run()))
