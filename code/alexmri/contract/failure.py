"""Tell a platform, in the one short text it shows, why a job failed or a process died."""

import re
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.resources import (
    CGROUP,
    cgroup_folders,
    shared_memory_bytes,
    size_text,
    usable_memory_bytes,
)
from alexmri.errors import UserError
from alexmri.files import write_atomically

# SageMaker shows so many characters of a training's file, and bytes of a processing job's.
LONGEST = 1024
USER_ERROR_CODE = 2
INTERNAL_ERROR_CODE = 1


def failure_text(error: BaseException) -> str:
    """Return one line with the cause first: at most 1024 bytes of valid UTF-8."""
    if isinstance(error, UserError):
        return one_line(str(error))
    told = f"{type(error).__name__}: {error}"
    cause = remedy(told)
    return one_line(
        f"{cause}: {told}" if cause else f"internal error: {told} (the log has the traceback)"
    )


def one_line(text: str) -> str:
    """Return `text` as a platform takes it: one line, at most 1024 bytes, valid UTF-8."""
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    whole = line.encode()
    if len(whole) <= LONGEST:
        return line
    return whole[: LONGEST - len("…".encode())].decode("utf-8", "ignore") + "…"


def log_failure(error: BaseException) -> str:
    """Print the cause, and the traceback of an unexpected error, to standard error; return it."""
    text = failure_text(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    print(f"error: {text}", file=sys.stderr, flush=True)
    return text


def report_failure(error: BaseException, path: Path) -> int:
    """Log the cause and write it to `path`, without a traceback; return the exit code."""
    _write(log_failure(error), path)
    return USER_ERROR_CODE if isinstance(error, UserError) else INTERNAL_ERROR_CODE


def write_failure(cause: str, path: Path | None) -> None:
    """Log a cause that is already in words, and write it to `path`, where one is given."""
    text = one_line(cause)
    print(f"error: {text}", file=sys.stderr, flush=True)
    if path:
        _write(text, path)


def _write(text: str, path: Path) -> None:
    """A platform that cannot take the file still gets the log and the exit code."""
    try:
        write_atomically(path, text)
    except UserError as refused:
        print(f"warning: {refused}", file=sys.stderr, flush=True)


# The exit code of a worker that failed only because another one was gone.
LOST_A_PEER = 75


class LostPeer(Exception):  # noqa: N818 - the error is at another worker
    """Another worker of this training is gone."""


# What a line of a log or the text of an exception tells, and the remedy; the first match counts.
KNOWN = (
    (
        r"(?i)watchdog caught collective operation timeout|nccl.*time(d)? ?-?out",
        "NCCL time-out: a GPU waited for another one that did not answer; find the first"
        " error in the logs of"
        " all hosts, and let the hosts reach each other (security group, NCCL_SOCKET_IFNAME)",
    ),
    (
        r"(?i)cuda out of memory|CUDA_ERROR_OUT_OF_MEMORY",
        "the GPU is out of memory; lower batch_size or image_size, or take a larger GPU",
    ),
    (
        r"(?i)can't allocate memory|cannot allocate memory|MemoryError",
        "out of memory: {memory}; lower batch_size or image_size, or give it more",
    ),
    (
        r"(?i)no space left on device",
        "a disk is full; give the job a larger volume, or ALEXMRI_CACHE_DIR on another disk",
    ),
    (
        r"(?i)CUDA driver version is insufficient|no kernel image is available",
        "the GPU or its driver does not fit this image; `preflight` in the image says what does",
    ),
)
SIGNALS = {
    signal.SIGBUS: "memory behind a file is gone: a disk or /dev/shm ({shared}) is full, or a file"
    " vanished while it was read; make room (docker run --shm-size) and keep the data in place",
    signal.SIGILL: "this CPU lacks an instruction the program was built with; take a newer CPU",
    signal.SIGKILL: "killed from outside or by the kernel for lack of memory ({memory}); if nobody"
    " sent it, lower batch_size or image_size, or give it more memory",
    signal.SIGSEGV: "native code crashed; the log shows where",
    signal.SIGABRT: "native code aborted; the log shows where",
}


@dataclass(frozen=True, slots=True)
class OomCounter:
    """How many processes of this cgroup the kernel had killed for lack of memory, at one moment."""

    count: int | None

    @classmethod
    def read(cls, cgroup: Path = CGROUP) -> "OomCounter":
        """Read cgroup v2's memory.events, or v1's memory.oom_control, of the innermost group."""
        counts = [
            int(found[1])
            for group in cgroup_folders("memory", cgroup)
            for name in ("memory.events", "memory.oom_control")
            if (file := group / name).is_file()
            and (found := re.search(r"^oom_kill (\d+)$", file.read_text(), flags=re.MULTILINE))
        ]
        return cls(counts[-1] if counts else None)

    def grew(self, before: "OomCounter") -> bool:
        return None not in (self.count, before.count) and self.count != before.count


def exit_reason(status: int, last_words: Sequence[str], *, out_of_memory: bool) -> str:
    """Return one sentence: what ended the process, and a remedy where one is known.

    Args:
        status: exit code, or minus the number of the signal that killed it.
        last_words: the last lines of its standard error.
        out_of_memory: whether the kernel killed a process of this cgroup for lack of memory.
    """
    number = -status if status < 0 else status - 128
    try:
        killer = signal.Signals(number)
    except ValueError:
        killer = None
    if killer is signal.SIGKILL and out_of_memory:
        memory = size_text(usable_memory_bytes())
        return (
            f"out of memory: the kernel killed the training (signal 9) at the container's limit of"
            f" {memory}; lower batch_size or image_size, or give it more memory"
        )
    told = remedy("\n".join(last_words))
    ended = f"killed by signal {number} ({killer.name})" if killer else f"exit code {status}"
    if told:
        return f"{told} ({ended})"
    if killer:
        return f"the training was {ended}: {_filled(SIGNALS.get(killer, 'sent from outside'))}"
    words = f": {last_words[-1]}" if last_words else " without a word"
    return f"the training ended with {ended}{words}"


def remedy(text: str) -> str | None:
    """Return what is known about an error that says `text`: its cause and what to change."""
    for pattern, sentence in KNOWN:
        if re.search(pattern, text):
            return _filled(sentence)
    return None


def _filled(sentence: str) -> str:
    return sentence.format(
        memory=f"the limit is {size_text(usable_memory_bytes())}",
        shared=size_text(shared_memory_bytes()),
    )
