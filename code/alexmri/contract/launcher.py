"""Process 1 of a training: start it as one child, pass signals on, reap, and say how it ended.

The child is the trainer itself, or torchrun where several workers train together. torchrun's agent
that gets SIGTERM leaves without the others, so a stop goes to its workers, which agree on it among
themselves; before there are workers it ends the child.
"""

import collections
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from alexmri.contract.failure import LOST_A_PEER, OomCounter, exit_reason, write_failure
from alexmri.contract.inputs import Hosts
from alexmri.contract.network import address_of, free_port, hosts_connected_to, is_connected_to
from alexmri.contract.network import network_variables as variables_between_hosts
from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import (
    IGNORED,
    STOPPING,
    WATCHED,
    die_with_parent,
    exit_code_of_stop,
)
from alexmri.errors import UserError

# The folder in which workers say that they train together and listen to signals; tells a training
# that it has a launcher.
WORKERS_FOLDER = "ALEXMRI_WORKERS_FOLDER"
MASTER_PORT = 7777
# SageMaker kills 120 s after SIGTERM.
STOP_DEADLINE_SECONDS = 85.0
# Hosts start minutes apart, and their names resolve late. torchrun's own limit comes after ours,
# which names the host that is missing.
JOIN_SECONDS = 290.0
TORCHRUN_JOIN_SECONDS = 330
POLL_SECONDS = 1.0
LAST_LINES = 60
# What torchrun reports of a worker that failed.
FAILED_WORKER = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+)")
# What a worker prints when it lost another one, with the address of that.
LOST_ANOTHER = "lost another worker"
ADDRESS = re.compile(r"\[?(\d+\.\d+\.\d+\.\d+)\]?:\d+")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many workers train where.

    Attributes:
        module: the Python module that is one worker, with `arguments`.
        workers: how many train on this host.
        hosts: the hosts of the job.
        port: where the workers of several hosts meet, on the first host.
    """

    module: str
    arguments: Sequence[str]
    workers: int = 1
    hosts: Hosts = Hosts()
    port: int = MASTER_PORT

    @property
    def is_distributed(self) -> bool:
        return self.workers > 1 or len(self.hosts.names) > 1

    def command(self) -> list[str]:
        """Return the command of the child: the worker itself, or torchrun."""
        worker = ["-m", self.module, *self.arguments]
        if not self.is_distributed:
            return [sys.executable, *worker]
        several = len(self.hosts.names) > 1
        torchrun = {
            "nnodes": len(self.hosts.names),
            "node-rank": self.hosts.rank,
            "nproc-per-node": self.workers,
            "master-addr": self.hosts.first if several else "127.0.0.1",
            "master-port": self.port if several else free_port(),
            "rdzv-conf": f"timeout={TORCHRUN_JOIN_SECONDS}",
            "max-restarts": 0,
            "monitor-interval": 0.5,
        }
        options = [f"--{name}={value}" for name, value in torchrun.items()]
        return [sys.executable, "-m", "torch.distributed.run", *options, *worker]

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return what the child needs beside `environment`, each in the value it has there."""
        if not self.is_distributed:
            return {}
        if len(self.hosts.names) > 1:
            variables = variables_between_hosts(self.hosts)
        else:
            variables = {"GLOO_SOCKET_IFNAME": "lo"}
        # torchrun would set 1, with a warning. Numpy reads it; torch is told its threads later.
        variables["OMP_NUM_THREADS"] = str(max(1, cpu_cores() // self.workers))
        return {name: environment.get(name, value) for name, value in variables.items()}


def count_workers(wanted: int, gpus: int) -> int:
    """Return how many workers train on this host; `wanted` 0 is one per GPU, or one on a CPU.

    Raises:
        UserError: more than one worker per GPU, which their library (NCCL) cannot do.
    """
    if gpus and wanted > gpus:
        raise UserError(
            f"workers_per_host is {wanted}, but this host has {gpus} usable"
            f" GPU{'s' if gpus > 1 else ''}; every worker needs its own"
        )
    return wanted or max(1, gpus)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Whether this process is a worker of a launcher, or of a torchrun that somebody started."""
    return WORKERS_FOLDER in environment or {"RANK", "WORLD_SIZE"} <= environment.keys()


def say_ready(environment: Mapping[str, str]) -> None:
    """Tell the launcher, if there is one, that this worker can be asked to stop."""
    folder = environment.get(WORKERS_FOLDER)
    if folder:
        number = environment.get("LOCAL_RANK", "0")
        Path(folder, number).write_text(str(os.getpid()), encoding="utf-8")


class Launcher:
    """Runs a training to its end; call `hold_signals` before.

    Attributes:
        stop: the signal that asked for the end, if one did; `stops` counts them.
        stopped_at: when that was, in seconds since 1970.
        was_ready: whether the training had begun to listen to signals.
        overdue: whether it had to be killed because it did not end in time.
    """

    def __init__(
        self,
        plan: Plan,
        environment: Mapping[str, str],
        failure: Path | None,
        say: Callable[[str], None],
    ) -> None:
        """`failure` is the file for the cause; None: the worker prints the cause."""
        self._plan = plan
        self._environment = environment
        self._failure = failure
        self._say = say
        self._words: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._oom = OomCounter.read()
        self._deadline = math.inf
        self.stop: signal.Signals | None = None
        self.stops = 0
        self.stopped_at: float | None = None
        self.was_ready = False
        self.overdue = False

    def run(self) -> int:
        """Run the child to its end; return the exit code of the job.

        0 where the training ended, or was stopped and saved; else the code of the worker that
        failed first, or 128 + the signal that killed it.
        """
        joined_by = time.monotonic() + JOIN_SECONDS
        if not self._wait_for_first_host(joined_by):
            return self._stopped_early()
        with _workers_folder() as folder:
            self._folder = folder
            child = self._start()
            while (status := self._reap(child.pid)) is None:
                self._attend(child)
                self.was_ready = self.was_ready or bool(self._workers())
                several = len(self._plan.hosts.names) > 1
                waiting = several and not (self.was_ready or self.stop)
                if waiting and time.monotonic() > joined_by:
                    self._end_unjoined(child)
            child.returncode = status
            self._reader.join(timeout=1)
        return self._conclude(status)

    def linger(self, seconds: float) -> None:
        """Wait, so that a platform can fetch what was just written; a signal ends the wait."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            came = signal.sigtimedwait(WATCHED, left)
            if came and came.si_signo in STOPPING:
                return

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {**self._environment, **self._plan.variables(self._environment)}
        environment[WORKERS_FOLDER] = str(self._folder)

        def in_the_child() -> None:
            die_with_parent()
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        child = subprocess.Popen(  # noqa: S603
            self._plan.command(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=in_the_child,
            # Ctrl-C at a terminal reaches it once, through here, and not twice.
            process_group=0,
        )
        assert child.stderr  # noqa: S101
        self._reader = threading.Thread(
            target=_copy_stderr, args=(child.stderr.fileno(), self._words), daemon=True
        )
        self._reader.start()
        return child

    def _attend(self, child: "subprocess.Popen[bytes]") -> None:
        """Wait for a signal, or a moment, and act on it."""
        left = self._deadline - time.monotonic()
        came = signal.sigtimedwait(WATCHED, max(0.0, min(left, POLL_SECONDS)))
        if came and came.si_signo in STOPPING:
            self._ask_to_stop(signal.Signals(came.si_signo), child)
        elif came and came.si_signo in IGNORED:
            self._say(f"{signal.Signals(came.si_signo).name} is ignored")
        if time.monotonic() > self._deadline:
            self._deadline = math.inf
            # Where all workers of this host ended, torchrun waits for those of the first host.
            if not self.was_ready or any(Path(f"/proc/{pid}").exists() for pid in self._workers()):
                self._say("warning: the deadline has passed: ending the training")
                self.overdue = True
                _kill(child.pid, signal.SIGKILL)

    def _ask_to_stop(self, number: signal.Signals, child: "subprocess.Popen[bytes]") -> None:
        self._note_stop(number)
        self._deadline = min(self._deadline, time.monotonic() + STOP_DEADLINE_SECONDS)
        workers = self._workers()
        if not self._plan.is_distributed:
            _kill(child.pid, number)
        elif workers:
            for worker in workers:
                _kill(worker, number)
        else:
            _kill(child.pid, signal.SIGTERM)

    def _note_stop(self, number: signal.Signals) -> None:
        self.stop = self.stop or number
        self.stops += 1
        self.stopped_at = self.stopped_at or time.time()

    def _workers(self) -> list[int]:
        """Return the processes of the workers that said they listen, by local rank."""
        ready = sorted(self._folder.iterdir(), key=lambda path: int(path.name))
        texts = [path.read_text(encoding="utf-8") for path in ready]
        return [int(text) for text in texts if text]

    def _reap(self, child: int) -> int | None:
        """Take leave of every process that ended, orphans too; return the child's exit status."""
        found = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            if pid == child:
                found = os.waitstatus_to_exitcode(status)

    def _wait_for_first_host(self, deadline: float) -> bool:
        """Wait until the name of the first host resolves; return False where a stop came first.

        Raises:
            UserError: it does not resolve in time.
        """
        hosts = self._plan.hosts
        told = False
        while len(hosts.names) > 1 and address_of(hosts.first) is None:
            if not told:
                self._say(
                    f"waiting for the first host {hosts.first}: its name does not resolve yet"
                )
                told = True
            if time.monotonic() > deadline:
                raise UserError(
                    f"the first host {hosts.first} did not come within"
                    f" {JOIN_SECONDS / 60:.0f} minutes: its name does not resolve; look at its log"
                )
            came = signal.sigtimedwait(WATCHED, POLL_SECONDS)
            if came and came.si_signo in STOPPING:
                self._note_stop(signal.Signals(came.si_signo))
                return False
        return True

    def _end_unjoined(self, child: "subprocess.Popen[bytes]") -> NoReturn:
        """End the child, because a host did not join.

        Raises:
            UserError: with the name of the host, where that can be known.
        """
        hosts, port = self._plan.hosts, self._plan.port
        if hosts.rank == 0:
            here = hosts_connected_to(port)
            others = {name: address_of(name) for name in hosts.names if name != hosts.current}
            missing = [name for name, address in others.items() if address not in here]
            who = ", ".join(missing) or "one of the hosts"
        elif is_connected_to(address_of(hosts.first), port):
            who = f"another host, which the log of {hosts.first} names,"
        else:
            who = hosts.first
        _kill(child.pid, signal.SIGKILL)
        child.wait()
        raise UserError(
            f"{who} did not join within {JOIN_SECONDS / 60:.0f} minutes; let the hosts of the job"
            f" reach each other on port {port} (security group), and look at the log of that host"
        )

    def _conclude(self, status: int) -> int:
        """Return the exit code of the job; say the cause of a failure, unless the worker did."""
        told = bool(self._failure and self._failure.is_file())
        if status == 0 or (self.stop and exit_code_of_stop(self.stop) == status):
            return exit_code_of_stop(self.stop)
        if self.stop and not self.was_ready and not told and not self.overdue:
            return self._stopped_early()
        rank, status = self._failed_worker(status)
        code = 128 - status if status < 0 else status
        if not told and (self._failure or status < 0 or status == LOST_A_PEER):
            write_failure(self._cause(rank, status), self._failure)
        return code

    def _stopped_early(self) -> int:
        self._say("stopped before the training began: there was nothing to save")
        return exit_code_of_stop(self.stop)

    def _failed_worker(self, status: int) -> tuple[int | None, int]:
        """Return rank and exit status of the worker that failed first, as torchrun reports it."""
        if not self._plan.is_distributed or self.overdue:
            return None, status
        found = FAILED_WORKER.findall("\n".join(self._words))
        failed = [(int(rank), int(code)) for rank, code in found]
        # A worker that only lost another one is not the cause.
        causes = [each for each in failed if each[1] != LOST_A_PEER] or failed
        return causes[-1] if causes else (None, status)

    def _cause(self, rank: int | None, status: int) -> str:
        if self.overdue:
            return f"still not done {STOP_DEADLINE_SECONDS:.0f} s after the stop signal: killed"
        if status == LOST_A_PEER:
            return self._lost_peer()
        grew = OomCounter.read().grew(self._oom)
        cause = exit_reason(status, list(self._words), out_of_memory=grew)
        where = f" on {self._plan.hosts.current}" if self._failure else ""
        return cause if rank is None else f"rank {rank}{where}: {cause}"

    def _lost_peer(self) -> str:
        """Name the host whose address the workers told of when the connection to it broke."""
        told = [line for line in self._words if LOST_ANOTHER in line]
        seen = ADDRESS.findall("\n".join(told))
        others = [name for name in self._plan.hosts.names if name != self._plan.hosts.current]
        named = [name for name in others if name in seen or address_of(name) in seen]
        if not named and len(others) == 1:
            named = others
        who = f"host {named[0]} ended" if len(named) == 1 else "another host ended"
        return f"{who}, and the training with it; the log of that host has the cause"


@contextlib.contextmanager
def _workers_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="alexmri-workers-")
    except OSError as error:
        raise UserError(
            f"no folder for temporary files can be made ({error.strerror}); mount one at /tmp"
            " (docker run --tmpfs /tmp), or name one in TMPDIR"
        ) from None
    with folder as name:
        yield Path(name)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _copy_stderr(source: int, words: collections.deque[str]) -> None:
    """Copy the child's standard error to this one's, and remember its last lines."""
    rest = b""
    while True:
        try:
            chunk = os.read(source, 65536)
        except OSError:
            break
        if not chunk:
            break
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), chunk)
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        words.extend(_text(line) for line in lines if line.strip())
        rest = rest[-4096:]
    if rest.strip():
        words.append(_text(rest))


def _text(line: bytes) -> str:
    return line[:2000].decode("utf-8", "replace").strip()
