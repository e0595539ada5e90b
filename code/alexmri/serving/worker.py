"""gunicorn's threaded worker, which no client and no end of the server keeps from answering /ping.

It holds every client to a deadline, and never waits for one in its main loop, which answers pings.
"""

import contextlib
import selectors
import socket
import struct
import time
from collections import deque
from concurrent import futures
from functools import partial
from typing import Any

from gunicorn.workers import gthread

from alexmri.contract.resources import step_back
from alexmri.serving.states import Board
from alexmri.serving.unread import Kind, kind_of

# Seconds a read from a client may stand still, and for the head of a request: a thread waits.
READ_TIMEOUT_S = 20
# How often deadlines are looked at and gunicorn's master hears of this process; not in every round
# of the main loop, of which each answer has one.
LOOK_S = 0.5
# A connection that is closed is read from until the client closes its end: one that is reset takes
# the answer with it. So long it may be silent, and so long it may send, in seconds.
SILENT_S, SENDING_S = 2, 20
WASTE_BYTES = 2**16
# Connections by which a process may be ahead of another, and their share of that one's, before it
# leaves new ones to it. Without a limit one of two processes took 48 of 64, and its batches were
# as much larger.
AHEAD, SHARE_AHEAD = 2, 0.125

# Seconds a thread waits for the rest of a body that nobody wants before the connection is closed.
# With gunicorn's 5, as many such clients as threads were enough to keep others waiting.
gthread.DEFAULT_WORKER_DATA_TIMEOUT = 0.05


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """Between SIGTERM and the end, `/ping` says 503 and requests under way are answered.

    gunicorn's own worker closes its port at once, and a platform that asks then cannot tell a
    server that ends from one that hangs.
    """

    place: int
    wsgi: Any = None
    _draining = False

    def init_process(self) -> None:
        # Connections that threads read from or answer, and when that must be over.
        self._deadlines: dict[Any, float] = {}
        # Connections that are being closed: since when, and when something came last; in its order.
        self._closing: dict[Any, tuple[float, float]] = {}
        self._waste = bytearray(WASTE_BYTES)
        self._look_at = 0.0
        # Accepted sockets inherit it. gunicorn itself waits for ever for the rest of a request.
        timeout = struct.pack("ll", READ_TIMEOUT_S, 0)
        for listener in self.sockets:
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        super().init_process()

    def get_thread_pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(self.cfg.threads, "request", initializer=step_back)

    def accept(self, listener: Any) -> None:
        """Take all that wait: one per round is too few when many clients come at once.

        What is not taken in time overflows the kernel's queue, and such a client waits for seconds.
        No thread waits for what a client sends first, as gunicorn's do.
        """
        while self.nr_conns < self.worker_connections:
            try:
                client, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            self.nr_conns += 1
            conn = gthread.TConn(self.cfg, client, address, listener.getsockname())
            conn.set_timeout()
            self.pending_conns.append(conn)
            readable = partial(self.on_pending_socket_readable, conn)
            self.poller.register(client, selectors.EVENT_READ, readable)

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Answer the first request of a connection."""
        if not self._answer_here(conn, client, self.pending_conns):
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Answer a further request of a connection."""
        if not self._answer_here(conn, client, self.keepalived_conns):
            super().on_client_socket_readable(conn, client)

    def handle(self, conn: Any) -> Any:
        """Serve one request, in a thread; a connection that was too late is not kept."""
        self._deadlines[conn] = time.monotonic() + READ_TIMEOUT_S
        result = super().handle(conn)
        self.wsgi.inside.discard(conn.sock)
        return self._deadlines.pop(conn, None) and result

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose head has come."""
        self._deadlines[conn] = time.monotonic() + self.wsgi.model.options.timeout_s
        return super().handle_request(req, conn)

    def finish_request(self, conn: Any, fs: "futures.Future[Any]") -> None:
        """Keep or close a connection whose thread is done, in the main loop.

        gunicorn closes it here too, and waits up to 2 s for a client that does not close its end.
        """
        if fs.exception() is None and fs.result():
            super().finish_request(conn, fs)
            return
        with contextlib.suppress(OSError):
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
        if self._is_over(conn.sock):
            self._close(conn)
            return
        now = time.monotonic()
        self._closing[conn] = (now, now)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_away, conn))

    def _cap_keepalive(self, deadline: float) -> None:
        """At the end of the server, let no silent connection keep it up."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.wsgi is None:
            # Still importing: there is nothing to finish.
            super().handle_exit(sig, frame)
            return
        self._draining = True
        self.wsgi.drain()
        self.method_queue.defer(lambda: None)

    def notify(self) -> None:
        """Called in every round of the main loop, and a round follows every answer."""
        now = time.monotonic()
        if now > self._look_at:
            self._look_at = now + LOOK_S
            super().notify()
            self._enforce_deadlines(now)
        model = self.wsgi.model
        fewest = model.share_connections(self.nr_conns)
        most = fewest + AHEAD + int(SHARE_AHEAD * fewest)
        if fewest < Board.NO_MORE and not model.is_up:
            # Another one can answer, and this one would refuse.
            most = 0
        self.worker_connections = min(self.cfg.worker_connections, most)
        if self._draining and self.alive and not self.wsgi.requests_under_way:
            super().handle_exit(0, None)

    def _answer_here(self, conn: Any, client: socket.socket, where: "deque[Any]") -> bool:
        """Answer without a thread what is simple: a ping, and when full an invocation by refusal.

        Return whether that was done; `where` lists the connection.
        """
        try:
            seen = client.recv_into(self._waste, 0, socket.MSG_PEEK)
        except OSError:
            return False
        kind = kind_of(memoryview(self._waste)[:seen]) if self.alive else None
        if kind is Kind.PING:
            answer = self.wsgi.pong()
        elif kind is Kind.INVOCATION and self.wsgi.is_full():
            answer = self.wsgi.refuse_unread()
        else:
            # While the server drains, a new one is not under way, and refused.
            if kind is Kind.INVOCATION and not self._draining:
                self.wsgi.inside.add(client)
            return False
        where.remove(conn)
        try:
            client.recv_into(self._waste, seen)
            sent = client.send(answer)
        except OSError:
            sent = 0
        if sent < len(answer):
            # It takes no answers.
            self.poller.unregister(client)
            self._close(conn)
            return True
        conn.set_timeout()
        self.keepalived_conns.append(conn)
        if where is self.pending_conns:
            readable = partial(self.on_client_socket_readable, conn)
            self.poller.modify(client, selectors.EVENT_READ, readable)
        return True

    def _enforce_deadlines(self, now: float) -> None:
        for conn, deadline in self._deadlines.copy().items():
            # A byte now and then satisfies the timeout of each read. This wakes the thread that
            # reads, and it answers 408; where it has read everything, nothing is lost.
            if now > deadline and self._deadlines.pop(conn, 0.0):
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)
        while self._closing:
            conn, (_, heard) = next(iter(self._closing.items()))
            if now < heard + SILENT_S:
                break
            self._forget(conn)

    def _read_away(self, conn: Any, sock: socket.socket) -> None:
        """Called when a connection that is being closed has something to read."""
        began, _ = self._closing.pop(conn)
        now = time.monotonic()
        # At the end again: the one that has been silent for longest is the first.
        self._closing[conn] = (began, now)
        if self._is_over(sock) or now > began + SENDING_S:
            self._forget(conn)

    def _is_over(self, sock: socket.socket) -> bool:
        """Read what nobody wants; return whether the client has closed its end."""
        try:
            return not sock.recv_into(self._waste)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _forget(self, conn: Any) -> None:
        del self._closing[conn]
        self.poller.unregister(conn.sock)
        self._close(conn)

    def _close(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()
