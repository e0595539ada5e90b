"""Be process 1 of a job: start the workers, pass signals on, reap, and tell how they died."""

import collections
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from alexmri.contract.control_channel import Party
from alexmri.contract.exit_reasons import LOST_A_PEER, OomCounter, exit_reason
from alexmri.contract.failure import write_failure
from alexmri.contract.signals import PASSED_ON, STOPPING, WATCHED

# SageMaker kills 120 s after SIGTERM; a worker that hangs must not take the whole job with it.
STOP_DEADLINE_SECONDS = 85.0
# What workers have left to end by themselves after one of the job died.
PARTING_SECONDS = 5.0
# How long it takes at most to notice what other hosts said.
ATTENTION_SECONDS = 0.2
LAST_LINES = 40


class Supervisor:
    """Runs `commands` side by side, one worker each; call `hold_signals` before.

    The first that dies badly ends the others. Its cause of death is written to `failure`, unless
    the worker wrote there itself; without such a file, only deaths without words of their own are
    told. One that only lost another worker is no cause: the other one is, here or on another host.

    Attributes:
        code, cause: of the first bad death of a worker; 0 where there is none.
        stops: how many times the job was asked to stop, here or on another host.
        stopped_at: when it first was, in seconds since 1970.
        overdue: whether workers had to be killed because they did not end in time.
    """

    def __init__(
        self, commands: Sequence[Sequence[str]], failure: Path | None, party: Party | None = None
    ) -> None:
        self._commands = commands
        self._failure = failure
        self._party = party or Party()
        self._words: dict[int, collections.deque[str]] = {}
        self._readers: dict[int, threading.Thread] = {}
        self._oom = OomCounter.read()
        self._deadline = math.inf
        self._parting = False
        self.code = 0
        self.cause = ""
        self.stops = 0
        self.stopped_at: float | None = None
        self.overdue = False

    def run(self, environments: Sequence[Mapping[str, str]]) -> int:
        """Run the workers, each in its environment, to their end; return the code of the job.

        0 when all ended with 0; else the code of the first that did not, or 128 + the signal that
        killed it; LOST_A_PEER only where no other died of anything else.
        """
        for command, environment in zip(self._commands, environments, strict=True):
            self._start(command, environment)
        while self._words:
            for pid, status in self._next_deaths():
                words = self._last_words(pid)
                if status:
                    self._take_note(status, words)
        return self.code

    def linger(self, seconds: float) -> None:
        """Wait, so that a platform can fetch what was just written; a signal ends the wait."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            came = signal.sigtimedwait(WATCHED, left)
            if came and came.si_signo in PASSED_ON:
                return

    def _take_note(self, status: int, words: Sequence[str]) -> None:
        """A worker died badly: the first cause in the job counts, and who lost a peer has none."""
        end = self._party.end
        if self.code not in (0, LOST_A_PEER) or (end and end.code != LOST_A_PEER):
            return
        if self.code == LOST_A_PEER and self.overdue:
            return
        self.code = 128 - status if status < 0 else status
        if self.code == LOST_A_PEER:
            self._party.tell("lost")
        elif not (self.stopped_at and self.code == 128 + signal.SIGINT):
            self.cause = self._tell(status, words)
            if not self.overdue:
                self._party.tell("failed", self.code, self.cause)
        self._part()

    def _part(self) -> None:
        if not self._parting:
            self._parting = True
            self._send(signal.SIGTERM)
            self._set_deadline(PARTING_SECONDS)

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
        left = self._deadline - time.monotonic()
        came = signal.sigtimedwait(WATCHED, max(0.0, min(left, ATTENTION_SECONDS)))
        number = signal.Signals(came.si_signo) if came else signal.SIGCHLD
        if number in STOPPING:
            self._party.asked_to_stop()
        elif number in PASSED_ON:
            self._send(number)
        self._party.listen()
        if self._party.stops > self.stops:
            self._stop(number if number in STOPPING else signal.SIGTERM)
        if self._party.end and self._party.end.failure:
            self._part()
        if time.monotonic() > self._deadline:
            self.overdue = True
            print("warning: the deadline has passed: ending the workers", flush=True)
            self._send(signal.SIGKILL)
            self._deadline = math.inf
        return self._reap()

    def _stop(self, number: signal.Signals) -> None:
        """Pass the stop on to the workers, as many times as it was asked for anywhere."""
        for _ in range(self._party.stops - self.stops):
            self._send(number)
        self.stops = self._party.stops
        self.stopped_at = self.stopped_at or time.time()
        self._set_deadline(STOP_DEADLINE_SECONDS)

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

    def _tell(self, status: int, words: Sequence[str]) -> str:
        """Return the cause of death; tell it, where the worker itself did not."""
        if self._failure and self._failure.is_file():
            return self._failure.read_text(encoding="utf-8")
        if self.overdue:
            cause = f"still not done {STOP_DEADLINE_SECONDS:.0f} s after the stop signal: killed"
        else:
            grew = OomCounter.read().grew(self._oom)
            cause = exit_reason(status, words, out_of_memory=grew)
        if self._failure or status < 0:
            write_failure(cause, self._failure)
        return cause

    def _send(self, number: signal.Signals) -> None:
        for pid in self._words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)


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
