"""What the hosts of a job tell each other, so that they begin, stop, fail and end as one.

Every host talks to the first one alone: ready, stopping, lost, failed, done. The first one decides
and tells all: that they begin, that they stop, and how the job ends. A connection that closes, or
falls silent, before that is a host that died.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alexmri.contract.exit_reasons import LOST_A_PEER, exit_reason
from alexmri.contract.failure import USER_ERROR_CODE
from alexmri.contract.hosts import Hosts
from alexmri.contract.wire import Wire
from alexmri.contract.workers import LOOPBACK

# Hosts start minutes apart, and their names resolve late.
PATIENCE_SECONDS = 900.0
# A host that has nothing but its failure to tell waits no longer than this for the others.
LATECOMER_SECONDS = 30.0
RETRY_SECONDS = 1.0
REMINDER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class End:
    """How the job ends, the same on every host: well, or by the first cause of its failure."""

    code: int = 0
    failure: str | None = None


class Party:
    """A host's part in the job, and what it knows of the others; alone, it decides all itself.

    Attributes:
        workers: how many workers each host has, in order; known as soon as all are ready.
        stops: how many times the job was asked to stop, as counted by the host asked most often.
        end: how the job ends, once that is known.
        addresses: of this host and the first one, on the network between the hosts.
    """

    def __init__(self) -> None:
        self.workers: tuple[int, ...] | None = None
        self.stops = 0
        self.end: End | None = None
        self.addresses = (LOOPBACK, LOOPBACK)
        self._asked = 0

    def asked_to_stop(self) -> None:
        """This host was told to stop; the others, who may have been told too, are told as well."""
        self._asked += 1
        if self._asked > self.stops:
            self.tell("stopping", self._asked)

    def tell(self, word: str, *more: Any) -> None:
        """Say how far this host is, for all to know.

        "ready" and how many workers it has; "stopping" and how often it was asked to; "done" and
        its exit code; "failed", exit code and cause; "lost" where a worker only lost another.
        """
        if word == "ready":
            self.workers = tuple(more)
        elif word == "stopping":
            self.stops = more[0]
            self.end = self.end or (None if self.workers else End())
        elif word == "done":
            self.end = self.end or End(*more)
        elif word == "lost":
            text = exit_reason(LOST_A_PEER, (), out_of_memory=False)
            self.end = self.end or End(LOST_A_PEER, text)
        elif not self.end or self.end.code == LOST_A_PEER:
            self.end = End(*more)

    def listen(self) -> None:
        """Hear what others said, without waiting for it."""

    def leave(self) -> None:
        """Part from the others, once `end` is known."""


class OtherHost(Party):
    """A host that talks to the first one, and does as that one decides."""

    def __init__(self, hosts: Hosts, port: int, say: Callable[[str], None]) -> None:
        super().__init__()
        self._hosts, self._port, self._say = hosts, port, say
        self._wire: Wire | None = None
        self._unsaid: list[tuple[Any, ...]] = [("host", hosts.current)]
        self._own: End | None = None
        self._give_up_at = time.monotonic() + PATIENCE_SECONDS
        self._call_at = self._remind_at = time.monotonic()

    def tell(self, word: str, *more: Any) -> None:
        if word == "stopping":
            self.stops = max(self.stops, more[0])
        elif word == "failed":
            self._own = self._own or End(more[0], f"{self._hosts.current}: {more[1]}")
            self._give_up_at = min(self._give_up_at, time.monotonic() + LATECOMER_SECONDS)
        if self._wire:
            self._wire.send(word, *more)
        elif word == "stopping":  # nothing has begun, and nobody waits
            self.end = self.end or End()
        else:
            self._unsaid.append((word, *more))

    def listen(self) -> None:
        if self.end:
            return
        if not self._wire:
            self._call()
            return
        for word, *more in self._wire.receive():
            if word == "ready":
                self.workers = tuple(more)
            elif word == "stopping":
                self.stops = max(self.stops, more[0])
            elif word == "end":
                self.end = End(*more)
        if self._wire.closed and not self.end:
            text = f"{self._hosts.first} left without a word; its log may have the cause"
            self.end = self._own or End(LOST_A_PEER, text)

    def leave(self) -> None:
        if self._wire:
            self._wire.close()

    def _call(self) -> None:
        if time.monotonic() < self._call_at:
            return
        try:
            connection = socket.create_connection((self._hosts.first, self._port), timeout=5)
            self._wire = Wire(connection, connection.getpeername()[0])
        except OSError as error:
            self._wait_for_first(error)
            return
        self.addresses = (self._wire.own_address, self._wire.other_address)
        for message in self._unsaid:
            self._wire.send(*message)

    def _wait_for_first(self, error: OSError) -> None:
        now = time.monotonic()
        first, why = self._hosts.first, error.strerror or str(error)
        if now > self._give_up_at:
            self.end = self._own or End(
                USER_ERROR_CODE,
                f"the first host {first} does not answer on port {self._port} ({why}); let the"
                " hosts of the job reach each other (security group), and look at its log",
            )
        elif now > self._remind_at:
            self._remind_at = now + REMINDER_SECONDS
            self._say(f"waiting for the first host {first} on port {self._port} ({why})")
        self._call_at = now + RETRY_SECONDS
