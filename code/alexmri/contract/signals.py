"""Turn signals into a request to stop that the work reads where it can stop without a loss."""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What is printed after the first and the second signal.
REPLIES = {
    1: "stopping after saving; after a second signal only the checkpoint is written",
    2: "saving only the checkpoint; a third signal ends at once",
}
# SIGHUP comes when a terminal goes away, for example with an ssh session.
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
# Their default is to end the process; nothing here has a use for them.
IGNORED = frozenset({signal.SIGUSR1, signal.SIGUSR2})
WATCHED = STOPPING | IGNORED | {signal.SIGCHLD}
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def hold_signals() -> None:
    """Keep signals pending until `Launcher` takes them; call it first, before slow imports.

    The kernel drops a signal that process 1 has no handler for, but never a blocked one.
    """
    # A parent that ignores it, as some do, would have children vanish before they are waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    if _is_detached():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _is_detached() -> bool:
    """Whether whoever started this process wants it to outlive the terminal, as nohup does."""
    return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that happens.

    An orphan would keep writing into the folder of the next training.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_code_of_stop(number: signal.Signals | None) -> int:
    """Return the exit code of a run that was stopped and saved: 130 after Ctrl-C, else 0."""
    return 128 + signal.SIGINT if number is signal.SIGINT else 0


class Stopped(BaseException):  # noqa: N818 - like KeyboardInterrupt, no error
    """Raised by a signal inside `StopRequest.interrupts`."""


class StopRequest:
    """Whether somebody asked the run to stop, by which signal, and how urgently."""

    def __init__(self, *, silent: bool = False) -> None:
        """`silent`: print nothing of signals, since another worker of this host does."""
        self._silent = silent
        self.signal: signal.Signals | None = None
        self.times = 0
        self._since = 0.0
        self._interrupting = 0

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def number(self) -> int:
        """The number of the signal that came; 0 where none did."""
        return int(self.signal or signal.SIGTERM) if self else 0

    @property
    def seconds_ago(self) -> float:
        """How long ago the first signal came; 0 where none did."""
        return time.monotonic() - self._since if self else 0.0

    @contextmanager
    def on(self) -> Iterator["StopRequest"]:
        """Listen for the signals in STOPPING inside the block; the third one ends the process.

        SIGUSR1 and SIGUSR2 are ignored. Signals that were blocked until now are let in.
        """

        def remember(number: int, frame: FrameType | None) -> None:
            self.times += 1
            if self.times > 2:
                os._exit(128 + number)
            if self.signal is None:
                self.signal = signal.Signals(number)
                self._since = time.monotonic()
            self._say(number, REPLIES[self.times])
            self._raise_if_due()

        stopping = STOPPING - {signal.SIGHUP} if _is_detached() else STOPPING
        before = {number: signal.signal(number, remember) for number in stopping}
        before |= {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def join(self, number: int) -> None:
        """Take over the request that came, as signal `number`, to another worker.

        It is not counted: the same request may come here too, and is no second one then.
        """
        if number and self.signal is None:
            self.signal = signal.Signals(number)
            self._since = time.monotonic()
            self._say(number, "stopping after saving, as another worker was asked to")

    def _say(self, number: int, reply: str) -> None:
        # After SIGHUP there may be no terminal to print to.
        with contextlib.suppress(OSError, ValueError):
            if not self._silent:
                print(f"{signal.Signals(number).name}: {reply}", flush=True)

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
