"""One connection between two hosts of a job, on which neither ever waits for the other."""

import contextlib
import json
import socket
from typing import Any

# A machine that vanishes says no goodbye: the kernel asks after it, and notices within 20 s.
SILENCE_SECONDS = 5
ATTEMPTS = 3
# Far more than any message has.
LONGEST_MESSAGE = 65536


class Wire:
    """A connection; each line is a JSON list, a word and what belongs to it.

    Attributes:
        own_address, other_address: its two ends.
    """

    def __init__(self, connection: socket.socket, other_address: str) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, SILENCE_SECONDS),
            (socket.TCP_KEEPINTVL, SILENCE_SECONDS),
            (socket.TCP_KEEPCNT, ATTEMPTS),
            (socket.TCP_USER_TIMEOUT, 1000 * SILENCE_SECONDS * (ATTEMPTS + 1)),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = connection
        self._rest = b""
        self.closed = False
        self.own_address = str(connection.getsockname()[0])
        self.other_address = other_address

    def send(self, *message: Any) -> None:
        """Send it; whether the other end is gone is noticed when it is listened to."""
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[list[Any]]:
        """Return what came since the last call; an end of the stream, or nonsense, closes."""
        try:
            while not self.closed and len(self._rest) < LONGEST_MESSAGE:
                chunk = self._connection.recv(4096)
                self._rest += chunk
                if not chunk:
                    self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        *lines, self._rest = self._rest.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            messages = [None]
        if len(self._rest) < LONGEST_MESSAGE and all(m and isinstance(m, list) for m in messages):
            return messages
        self.close()
        return []

    def close(self) -> None:
        self.closed = True
        self._connection.close()
