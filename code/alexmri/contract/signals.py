"""Turn signals into a request to stop that the work reads where it can stop without a loss."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What is said after the first and the second signal.
ANSWERS = {
    1: "stopping after saving; a second one leaves out all but the checkpoint",
    2: "hurrying; a third one ends at once",
}


STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
# What the first process of a container passes on to its workers.
PASSED_ON = STOPPING | {signal.SIGUSR1, signal.SIGUSR2}
WATCHED = PASSED_ON | {signal.SIGCHLD}


def hold_signals() -> None:
    """Keep signals pending until somebody asks for them: first of all, before slow imports.

    The kernel drops a signal that process 1 has no handler for, but never a blocked one. Workers
    inherit this and let the signals in when their handlers stand (`StopRequest.on`).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


class Stopped(BaseException):  # noqa: N818 - like KeyboardInterrupt, no error
    """Raised by a signal inside `StopRequest.interrupts`."""


class StopRequest:
    """Whether somebody asked the run to stop, by which signal, and how urgently."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.times = 0
        self._since = 0.0
        self._interrupting = 0

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def seconds_ago(self) -> float:
        """How long ago the first signal came; 0 where none did."""
        return time.monotonic() - self._since if self else 0.0

    @contextmanager
    def on(self, *signals: signal.Signals) -> Iterator["StopRequest"]:
        """Listen for `signals` inside the block; the third one ends the process at once.

        Signals that were blocked until now, by the process that started this one, are let in.
        """

        def remember(number: int, frame: FrameType | None) -> None:
            self.times += 1
            if self.times > 2:
                os._exit(128 + number)
            if self.signal is None:
                self.signal = signal.Signals(number)
                self._since = time.monotonic()
            print(f"{signal.Signals(number).name}: {ANSWERS[self.times]}", flush=True)
            self._raise_if_due()

        before = {number: signal.signal(number, remember) for number in signals}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED | set(signals))
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def join(self, number: int) -> None:
        """Take over the request that came, as signal `number`, to a process one works with.

        It is not counted: the same request is likely to come here too, and is no second one then.
        """
        if number and self.signal is None:
            self.signal = signal.Signals(number)
            self._since = time.monotonic()

    @contextmanager
    def interrupts(self, *, at: int) -> Iterator[None]:
        """Let the signal number `at` (1 or 2) end the block there and then, raising `Stopped`.

        For work that can be thrown away. Counts signals that came before the block too.
        """
        outer, self._interrupting = self._interrupting, at
        try:
            self._raise_if_due()
            yield
        finally:
            self._interrupting = outer

    def _raise_if_due(self) -> None:
        if self._interrupting and self.times >= self._interrupting:
            raise Stopped
