"""Whether the server can answer: loading, ready, draining or failed."""

import mmap
import os
from enum import Enum


class State(Enum):
    """The states of one process, in the order in which it goes through them."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Board:
    """What the processes of a server tell one another, in memory made before they were forked.

    Each has a place, which its successor takes over. The server is up once every place has been
    ready: a platform must not send requests that another process would still refuse. Each tells
    how many connections it holds, so that none gathers most of them, and when it last computed, so
    that one which computes alone can have all cores.
    """

    # More connections than any process takes: that of one which cannot answer.
    NO_MORE = 2**16 - 1

    def __init__(self, places: int) -> None:
        self.places = places
        self._ready = mmap.mmap(-1, places)
        self._connections = memoryview(mmap.mmap(-1, 2 * places)).cast("H")
        self._worked = memoryview(mmap.mmap(-1, 8 * places)).cast("d")
        for place in range(places):
            self.tell_connections(place, self.NO_MORE)
        self._word, token = os.pipe()
        os.set_blocking(self._word, False)
        os.write(token, b"!")
        os.close(token)

    def tell_ready(self, place: int) -> None:
        """Note that the process in `place` can answer."""
        self._ready[place] = 1

    def is_up(self) -> bool:
        """Whether every place has been ready."""
        return 0 not in self._ready[:]

    def tell_connections(self, place: int, count: int) -> None:
        """Note how many connections the process in `place` holds."""
        self._connections[place] = min(count, self.NO_MORE)

    def fewest_connections(self) -> int:
        """Return how many connections the process with the fewest holds."""
        return min(self._connections)

    def tell_work(self, place: int, until: float) -> None:
        """Note until when the process in `place` computed (monotonic clock); infinity: it does."""
        self._worked[place] = until

    def rest(self, place: int, since: float) -> bool:
        """Whether all processes but that in `place` have computed nothing since then."""
        return all(self._worked[other] < since for other in range(self.places) if other != place)

    def has_the_word(self) -> bool:
        """Whether the caller is the first to fail, who tells why: the others would repeat it."""
        try:
            return bool(os.read(self._word, 1))
        except BlockingIOError:
            return False
