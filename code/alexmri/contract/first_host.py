"""The first host of a job: all others talk to it, and it decides how the job begins and ends."""

import contextlib
import math
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

from alexmri.contract.control_channel import (
    LATECOMER_SECONDS,
    PATIENCE_SECONDS,
    REMINDER_SECONDS,
    RETRY_SECONDS,
    End,
    OtherHost,
    Party,
)
from alexmri.contract.exit_reasons import LOST_A_PEER
from alexmri.contract.failure import USER_ERROR_CODE
from alexmri.contract.hosts import Hosts
from alexmri.contract.wire import Wire
from alexmri.errors import UserError

# Whoever only lost the others waits so long for one of them to say why.
GRACE_SECONDS = 4.0
# How long the first host, when all is decided, waits for the others to leave before it.
PARTING_SECONDS = 10.0


class FirstHost(Party):
    """The host to which all others talk, and which decides for them."""

    def __init__(self, hosts: Hosts, port: int, say: Callable[[str], None]) -> None:
        super().__init__()
        self._hosts, self._port, self._say = hosts, port, say
        try:
            self._server = socket.create_server(("", port), backlog=len(hosts.names))
        except OSError as error:
            raise UserError(
                f"{hosts.current} cannot listen to the other hosts on port {port}:"
                f" {error.strerror}; end what uses that port"
            ) from None
        self._server.setblocking(False)
        self._wires: dict[str, Wire] = {}
        self._strangers: list[Wire] = []
        self._ready: dict[str, int] = {}
        self._done: dict[str, int] = {}
        # Hosts that left or lost the others, with what there is to say about it.
        self._lost: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._verdict_at = time.monotonic() + PATIENCE_SECONDS
        self._remind_at = time.monotonic() + RETRY_SECONDS

    def tell(self, word: str, *more: Any) -> None:
        self._hear(self._hosts.current, word, *more)

    def listen(self) -> None:
        with contextlib.suppress(OSError):  # nobody else knocks
            while True:
                connection, address = self._server.accept()
                self._strangers.append(Wire(connection, address[0]))
        for stranger in list(self._strangers):
            self._admit(stranger)
        for host, wire in self._wires.items():
            was_open = not wire.closed
            for word, *more in wire.receive():
                self._hear(host, word, *more)
            if wire.closed and was_open and host not in self._done:
                self._ready.pop(host, None)
                self._gone[host] = f"{host} left without a word; its log may have the cause"
                self._miss(host)
        if not self.workers:
            self._remind()
        if not self.end and time.monotonic() > self._verdict_at:
            self._decide(self._verdict())

    def leave(self) -> None:
        """Let the others leave first; a failure is told even to hosts that are still to come."""
        since = time.monotonic()
        failed = self.end and self.end.failure
        late = LATECOMER_SECONDS if failed and not self.workers else 0.0
        while (waited := time.monotonic() - since) < max(PARTING_SECONDS, late):
            here = any(not wire.closed for wire in self._wires.values())
            to_come = len(self._wires) + 1 < len(self._hosts.names) and waited < late
            if not here and not to_come:
                break
            time.sleep(0.05)
            self.listen()
        for wire in (*self._wires.values(), *self._strangers):
            wire.close()
        self._server.close()

    def _admit(self, stranger: Wire) -> None:
        """Take in who says to be a host of this job; whoever else knocks is not heard."""
        messages = stranger.receive()
        if messages or stranger.closed:
            self._strangers.remove(stranger)
        if not messages:
            return
        (word, *names), *rest = messages
        others = self._hosts.names[1:]
        if word != "host" or len(names) != 1 or names[0] not in others:
            stranger.close()
            return
        host = names[0]
        if host in self._wires:
            stranger.close()
            self._decide(
                End(
                    USER_ERROR_CODE,
                    f"two hosts say that they are {host}; give each"
                    " its own current_host in resourceconfig.json",
                )
            )
            return
        self._wires[host] = stranger
        self.addresses = (stranger.own_address, stranger.own_address)
        if self.stops:
            stranger.send("stopping", self.stops)
        for message in rest:
            self._hear(host, *message)
        if self.end:
            stranger.send("end", self.end.code, self.end.failure)

    def _hear(self, host: str, word: str, *more: Any) -> None:
        if word == "ready":
            self._ready[host] = more[0]
            if not self.workers and self._all(self._ready):
                self.workers = tuple(self._ready[name] for name in self._hosts.names)
                self._verdict_at = math.inf
                self._tell_all("ready", *self.workers)
        elif word == "stopping" and more[0] > self.stops:
            self.stops = more[0]
            self._tell_all("stopping", self.stops)
            if not self.workers:
                self._decide(End())
        elif word == "lost":
            self._lost[host] = f"a worker on {host} lost the others, and none of them says why"
            self._miss(host)
        elif word == "failed":
            self._decide(End(more[0], f"{host}: {more[1]}"))
        elif word == "done":
            self._done[host] = more[0]
            self._end_if_all_is_done()

    def _miss(self, host: str) -> None:
        """Give the others a moment to say why `host` left, or lost them."""
        self._verdict_at = min(self._verdict_at, time.monotonic() + GRACE_SECONDS)
        self._end_if_all_is_done()

    def _end_if_all_is_done(self) -> None:
        """What counts is on the first host's disk: what others lose after it is done is nothing."""
        accounted = self._done.keys() | self._lost.keys() | self._gone.keys()
        if self._hosts.current in self._done and self._all(accounted):
            self._decide(End(self._done[self._hosts.current]))

    def _verdict(self) -> End:
        for text in (*self._gone.values(), *self._lost.values()):
            return End(LOST_A_PEER, text)
        return End(
            USER_ERROR_CODE,
            f"{self._missing()} did not call {self._hosts.current} on port {self._port} within"
            f" {PATIENCE_SECONDS / 60:.0f} minutes; let the hosts of the job reach each other"
            " (security group), and look at the log of the missing one",
        )

    def _decide(self, end: End) -> None:
        if not self.end:
            self.end = end
            self._tell_all("end", end.code, end.failure)

    def _tell_all(self, *message: Any) -> None:
        for wire in self._wires.values():
            wire.send(*message)

    def _all(self, hosts: Collection[str]) -> bool:
        return set(hosts) >= set(self._hosts.names)

    def _missing(self) -> str:
        return ", ".join(name for name in self._hosts.names if name not in self._ready)

    def _remind(self) -> None:
        if not self.end and time.monotonic() > self._remind_at:
            self._remind_at = time.monotonic() + REMINDER_SECONDS
            self._say(f"waiting for {self._missing()} on port {self._port}")


def party_of(hosts: Hosts, port: int, say: Callable[[str], None]) -> Party:
    """Return the part of this one among `hosts`.

    Raises:
        UserError: the first host cannot listen on `port`.
    """
    if len(hosts.names) == 1:
        return Party()
    return OtherHost(hosts, port, say) if hosts.rank else FirstHost(hosts, port, say)
