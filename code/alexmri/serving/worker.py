"""gunicorn's threaded worker, which goes on answering /ping while it finishes what it has begun."""

import socket
import struct
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

# Seconds a read from a client may stand still: a thread waits for it.
READ_TIMEOUT_S = 20
# Connections by which a process may be ahead of another, and their share of that one's, before it
# leaves new ones to it. Without a limit one of two processes took 48 of 64, and its batches were
# as much larger.
AHEAD, SHARE_AHEAD = 4, 0.25


class Worker(ThreadWorker):  # type: ignore[misc]
    """Between SIGTERM and the end, `/ping` says 503 and requests under way are answered.

    gunicorn's own worker closes its port at once, and a platform that asks then cannot tell a
    server that ends from one that hangs.
    """

    place: int
    _draining = False

    def init_process(self) -> None:
        # Accepted sockets inherit it. gunicorn itself waits for ever for the rest of a request.
        timeout = struct.pack("ll", READ_TIMEOUT_S, 0)
        for listener in self.sockets:
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Take all that wait: one per round is too few when many clients come at once.

        What is not taken in time overflows the kernel's queue, and such a client waits for seconds.
        """
        before = -1
        while before < self.nr_conns < self.worker_connections:
            before = self.nr_conns
            super().accept(listener)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._draining = True
        self.wsgi.drain()
        self.method_queue.defer(lambda: None)

    def notify(self) -> None:
        """Called in every round of the main loop, and a round follows every answer."""
        super().notify()
        model = self.wsgi.model
        fewest = model.share_connections(self.nr_conns)
        most = fewest + AHEAD + int(SHARE_AHEAD * fewest)
        self.worker_connections = min(self.cfg.worker_connections, most)
        if self._draining and self.alive and not self.wsgi.requests_under_way:
            super().handle_exit(0, None)
