"""Be process 1 of a job: start the workers, pass signals on, reap, and tell how they died."""

import collections
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from alexmri.contract.deaths import OomCounter, cause_of_death
from alexmri.contract.failure import write_failure
from alexmri.contract.signals import PASSED_ON, WATCHED

# SageMaker kills 120 s after SIGTERM; a worker that hangs must not take the whole job with it.
STOP_DEADLINE_SECONDS = 85.0
# What workers have left to end by themselves after one of them died.
PARTING_SECONDS = 10.0
LAST_LINES = 40


class Supervisor:
    """Runs `commands` side by side, one worker each; call `hold_signals` before.

    The first that dies badly ends the others. Its cause of death is written to `failure`, unless
    the worker wrote there itself.

    Attributes:
        stops: how many signals asked for an end.
        stopped_at: when the first did, in seconds since 1970.
        overdue: whether workers had to be killed because they did not end in time.
    """

    def __init__(self, commands: Sequence[Sequence[str]], failure: Path) -> None:
        self._commands = commands
        self._failure = failure
        self._words: dict[int, collections.deque[str]] = {}
        self._readers: dict[int, threading.Thread] = {}
        self._oom = OomCounter.read()
        self._deadline: float | None = None
        self.stops = 0
        self.stopped_at: float | None = None
        self.overdue = False

    def run(self, environment: Mapping[str, str]) -> int:
        """Run the workers to their end; return the exit code of the job.

        0 when all ended with 0; else the code of the first that did not, or 128 + the signal that
        killed it.
        """
        for command in self._commands:
            self._start(command, environment)
        code = 0
        while self._words:
            for pid, status in self._next_deaths():
                words = self._last_words(pid)
                if status and not code:
                    code = 128 - status if status < 0 else status
                    if not (self.stopped_at and code == 128 + signal.SIGINT):
                        self._tell(status, words)
                    self._send(signal.SIGTERM)
                    self._set_deadline(PARTING_SECONDS)
        return code

    def linger(self, seconds: float) -> None:
        """Wait, so that a platform can fetch what was just written; a signal ends the wait."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            came = signal.sigtimedwait(WATCHED, left)
            if came and came.si_signo in PASSED_ON:
                return

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        # A group of its own: Ctrl-C at a terminal reaches it once, through here, and not twice.
        pid = os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, writing, 2)],
            setpgroup=0,
        )
        os.close(writing)
        words = self._words[pid] = collections.deque(maxlen=LAST_LINES)
        thread = threading.Thread(target=_pass_on, args=(reading, words), daemon=True)
        self._readers[pid] = thread
        thread.start()

    def _next_deaths(self) -> list[tuple[int, int]]:
        """Wait for a signal and act on it; return (process, exit status) of workers that ended."""
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        came = signal.sigwaitinfo(WATCHED) if left is None else signal.sigtimedwait(WATCHED, left)
        if came is None:
            self.overdue = True
            print("warning: the deadline has passed: ending the workers", flush=True)
            self._send(signal.SIGKILL)
            self._deadline = None
        elif came.si_signo in PASSED_ON:
            self._send(signal.Signals(came.si_signo))
            if came.si_signo in (signal.SIGTERM, signal.SIGINT):
                self.stops += 1
                self.stopped_at = self.stopped_at or time.time()
                self._set_deadline(STOP_DEADLINE_SECONDS)
        return self._reap()

    def _reap(self) -> list[tuple[int, int]]:
        """Take leave of every process that ended: workers, and orphans that came to process 1."""
        ended = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self._words:
                ended.append((pid, os.waitstatus_to_exitcode(status)))
        return ended

    def _last_words(self, pid: int) -> list[str]:
        # Something the worker left behind may hold the pipe open: it is not waited for.
        self._readers.pop(pid).join(timeout=1)
        return list(self._words.pop(pid))

    def _tell(self, status: int, words: Sequence[str]) -> None:
        if self._failure.is_file():
            return
        if self.overdue:
            cause = f"still not done {STOP_DEADLINE_SECONDS:.0f} s after the stop signal: killed"
        else:
            grew = OomCounter.read().grew(self._oom)
            cause = cause_of_death(status, words, out_of_memory=grew)
        write_failure(cause, self._failure)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _set_deadline(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._deadline = end if self._deadline is None else min(self._deadline, end)


def _pass_on(reading: int, words: collections.deque[str]) -> None:
    """Copy a worker's standard error to this one's, and remember its last lines."""
    with os.fdopen(reading, "rb", buffering=0) as source:
        rest = b""
        while chunk := source.read(65536):
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), chunk)
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            words.extend(_text(line) for line in lines if line.strip())
            rest = rest[-4096:]
        if rest.strip():
            words.append(_text(rest))


def _text(line: bytes) -> str:
    return line[:2000].decode("utf-8", "replace").strip()
