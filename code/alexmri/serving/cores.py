"""How many cores a forward pass takes: all of them while no other process computes, else its own.

Two processes that each compute on one of two cores answer most; a lone picture is sooner there on
both (5.1 ms instead of 7.2, measured). But PyTorch's threads wait for one another by spinning, and
where another program has one of the cores a pass over both takes 15 to 140 ms. So it is kept up
only while it pays.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from alexmri.data.pixels import Pixels
from alexmri.serving.batcher import Costs
from alexmri.serving.states import Board

# Another process that has computed within this time is about to compute again.
QUIET_S = 0.05
# Where passes over all cores have cost more time than they saved, none follows for this long, and
# for twice as long each time again. What they saved counts for so many pictures alone at most, and
# at first they have so many to lose: one slow pass is no reason to rest.
FIRST_REST_S, LONGEST_REST_S = 1.0, 64.0
MOST_SAVED, FIRST_SAVED = 10, 3

Rows = TypeVar("Rows")


class Cores:
    """The cores of one model thread, which alone may call `run`.

    Args:
        board, place: what the other processes tell, and where this one does.
        own, most: threads of a pass while others compute, and while none does.
        set_threads: sets the threads of passes that the calling thread begins.
        costs: how long a pass with its own threads takes.
    """

    def __init__(
        self,
        board: Board,
        place: int,
        *,
        own: int,
        most: int,
        set_threads: Callable[[int], None],
        costs: Costs,
    ) -> None:
        self._board, self._place = board, place
        self._own, self._most = own, most
        self._set_threads = set_threads
        self._costs = costs
        self._threads = 0
        self._saved_s = FIRST_SAVED * costs.seconds(1)
        self._rest_s = FIRST_REST_S
        self._rest_until = 0.0

    def settle(self, forward: Callable[[Pixels], object], pixels_NCHW: Pixels) -> None:
        """Run a first pass over all cores, whose threads stay free; bind this one to its core.

        A thread inherits the cores of the one that starts it, and the process may have fewer than
        the thread that loads the model.
        """
        self._use(self._most)
        forward(pixels_NCHW)
        stay_on(os.sched_getaffinity(os.getpid()))

    def run(self, forward: Callable[[Pixels], Rows], pixels_NCHW: Pixels) -> Rows:
        """Return the answers, computed on as many cores as are free and worth it."""
        began = time.monotonic()
        alone = began > self._rest_until and self._board.rest(self._place, began - QUIET_S)
        self._use(self._most if alone else self._own)
        self._board.tell_work(self._place, math.inf)
        try:
            return forward(pixels_NCHW)
        finally:
            ended = time.monotonic()
            self._board.tell_work(self._place, ended)
            if alone:
                self._judge(len(pixels_NCHW), ended - began)

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            self._threads = threads
            self._set_threads(threads)

    def _judge(self, pictures: int, seconds: float) -> None:
        most_s = MOST_SAVED * self._costs.seconds(1)
        self._saved_s = min(most_s, self._saved_s + self._costs.seconds(pictures) - seconds)
        if self._saved_s < 0:
            self._rest_until = time.monotonic() + self._rest_s
            self._rest_s = min(LONGEST_REST_S, 2 * self._rest_s)
            self._saved_s = FIRST_SAVED * self._costs.seconds(1)
        elif self._saved_s == most_s:
            self._rest_s = FIRST_REST_S


def stay_on(cores: Iterable[int]) -> None:
    """Bind the calling thread to these cores, where it is not; some sandboxes allow no change."""
    if set(cores) != os.sched_getaffinity(0):
        os.sched_setaffinity(0, cores)
