"""gunicorn's threaded worker with additions: four keep /ping answering, two save processor time.

1. A connection that has sent nothing holds no thread.
2. Reading a request has a time limit.
3. When the server stops, late clients get 503 until the requests in flight are answered.
4. A process that is replaced accepts connections until another one is ready.
5. A thread waits a moment for the next request of its connection.
6. The threads of a process stay on its cores.
"""

import contextlib
import math
import os
import select
import selectors
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker

from alexmri.serving import shared
from alexmri.serving.config import cores_of

# Time limit for the head of a request, in seconds, from the moment its connection is accepted.
READ_LIMIT_S = 5.0
# A body gets more time, by its size.
BODY_BYTES_PER_S = 100_000
MAX_DRAIN_BYTES = 100 * 2**20
# A stopping server answers 503 for this long at least, so that no late client is reset.
DRAIN_S = 1.0
ACCEPT_PAUSE_S = 0.0003
# A new process would lose these: until it has handlers of its own, it has those of its parent.
HELD_SIGNALS = frozenset({signal.SIGTERM, signal.SIGQUIT})
# Under load the next request comes at once. A thread that waits for it spares two hand-overs by
# way of the main loop: a sixth of the processor time beside the forward pass (64 connections).
NEXT_REQUEST_MS = 5
# Not in every round of the main loop, of which each answer has one.
NOTIFY_S = 0.25


class Worker(ThreadWorker):  # type: ignore[misc]
    """One process of the server."""

    # Set by gunicorn_config.pre_fork: which of the processes this is.
    place: int = 0
    wsgi: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Connections whose request is being read or answered, and when reading must be over.
        self._read_until: dict[Any, float] = {}
        # Once the server stops: when that may end at the earliest, and what is in flight.
        self._stops_at: float | None = None
        self._to_finish: set[Any] = set()
        # Once another process takes over: when this one leaves even if no other is ready.
        self._leaves_at: float | None = None
        self._notify_at = 0.0

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return the threads that answer requests.

        Python runs one of them at a time. Wherever the next one wakes on another core, both cores
        wait for each other: 560 answers per second instead of 690 (64 connections, two cores).
        """
        cores = cores_of(self.place, self.cfg.workers)
        return ThreadPoolExecutor(self.cfg.threads, initializer=stay_on, initargs=(cores,))

    def init_signals(self) -> None:
        """Take the signals that `gunicorn_config.on_starting` holds back while a process forks."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        self._choose_to_accept()
        self.wsgi.extensions["body_was_read"] = self.body_was_read

    def accept(self, listener: Any) -> None:
        """Take one connection, and let another process take the next one.

        Without the pause one of two processes took all of 64 that came at once.
        """
        super().accept(listener)
        time.sleep(ACCEPT_PAUSE_S)

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection a thread, once it has sent something."""
        if conn.data_ready or conn.initialized:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + READ_LIMIT_S
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def handle(self, conn: Any) -> Any:
        """Answer requests of a connection, in a thread, as long as each comes at once.

        Not while the server is overloaded: the requests that it refuses would take the time of
        those that it answers.
        """
        engine = self.wsgi.extensions["engine"]
        kept = self._handle_one(conn)
        while kept is True and engine.has_room and sends_within(conn.sock, NEXT_REQUEST_MS):
            kept = self._handle_one(conn)
        return kept

    def _handle_one(self, conn: Any) -> Any:
        """Answer one request; close the connection here where it is not kept."""
        now = time.monotonic()
        # A first request may have waited for a thread, but not for its client.
        self._read_until[conn] = now + READ_LIMIT_S if conn.initialized else conn.timeout
        in_time = now < self._read_until[conn] or has_whole_head(conn.sock)
        kept = in_time and super().handle(conn)
        until = self._read_until.pop(conn)
        self._to_finish.discard(conn)
        if kept and until:
            return kept
        if 0 < until < math.inf:  # a client that still sends shall read its answer
            util.close_graceful(conn.sock, timeout=READ_LIMIT_S, max_drain=MAX_DRAIN_BYTES)
        else:
            conn.close()
        return False

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose head was read."""
        if self._read_until[conn]:
            self._read_until[conn] = time.monotonic() + body_limit_s(req, self.timeout)
        return super().handle_request(req, conn)

    def body_was_read(self, sock: Any) -> None:
        """End the time limit of a request whose body was read."""
        for conn in list(self._read_until):
            if conn.sock is sock and self._read_until[conn]:
                self._read_until[conn] = math.inf

    def finish_request(self, conn: Any, fs: "Future[Any]") -> None:
        """Keep a connection whose request was answered; `handle` has closed the others."""
        if not fs.cancelled() and fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
        else:
            self.nr_conns -= 1

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop: once another process is ready, or with 503 where the whole server stops."""
        if self.wsgi is None or not self.alive:
            super().handle_exit(sig, frame)
        elif not self._server_stops():
            self._leaves_at = self._leaves_at or time.monotonic() + self.cfg.graceful_timeout
            shared.tell_leaving()
        elif self._stops_at is None:
            self._stops_at = time.monotonic() + DRAIN_S
            self._leaves_at = None
            self._to_finish = set(self._read_until)
            self.wsgi.extensions["engine"].drain()
            self.method_queue.defer(lambda: None)

    def notify(self) -> None:
        """Tell gunicorn that this process is alive; called in every round of the main loop."""
        now = time.monotonic()
        if now > self._notify_at:
            self._notify_at = now + NOTIFY_S
            super().notify()
            self._end_slow_reads(now)
            self._choose_to_accept()
            if self._leaves_at and (now > self._leaves_at or shared.is_another_ready()):
                self.alive = False
        if self._stops_at and now > self._stops_at and not self._to_finish:
            self.alive = False

    def _choose_to_accept(self) -> None:
        """Leave new connections to the others where they can answer and this process cannot."""
        able = self._stops_at or self.wsgi.extensions["engine"].may_accept()
        self.worker_connections = self.cfg.worker_connections if able else 0

    def _end_slow_reads(self, now: float) -> None:
        for conn, until in list(self._read_until.items()):
            if 0 < until < now:
                self._read_until[conn] = 0.0
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads

    def _server_stops(self) -> bool:
        """Whether the whole server stops: gunicorn's master closes its port before it says so."""
        port = os.fstat(self.sockets[0].fileno()).st_ino
        for link in Path(f"/proc/{self.ppid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if link.stat().st_ino == port:
                    return False
        return True


def body_limit_s(req: Any, unknown_size_s: float) -> float:
    """Return how long the body of a request may take; without a body nothing is left to read."""
    headers = dict(req.headers)
    if "TRANSFER-ENCODING" in headers:
        return READ_LIMIT_S + unknown_size_s
    length = int(headers.get("CONTENT-LENGTH", 0))
    return READ_LIMIT_S + length / BODY_BYTES_PER_S if length else math.inf


def stay_on(cores: set[int]) -> None:
    """Keep this thread on some cores, where the system lets it choose."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)


def sends_within(sock: socket.socket, milliseconds: int) -> bool:
    """Whether a client sends something, or closes, within a time."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(milliseconds))


def has_whole_head(sock: socket.socket) -> bool:
    """Whether the head of a request has come."""
    with contextlib.suppress(OSError):
        return b"\r\n\r\n" in sock.recv(2**16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return False
