"""Say why a process died, and what to change, from its exit status and its last words."""

import re
import signal
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

# How a worker ends that found nothing wrong but lost a worker it computes with: whoever waits for
# several workers or hosts looks for the cause at another.
LOST_A_PEER = 75


class LostPeer(Exception):  # noqa: N818 - nothing is wrong here: the cause is at another worker
    """A worker is gone with which this one computes."""


# What a line of a log or the text of an exception tells, and the remedy; the first match counts.
KNOWN = (
    (
        r"(?i)watchdog caught collective operation timeout|nccl.*time(d)? ?-?out",
        "NCCL time-out: a GPU waited for one that never came; find the first error in the logs of"
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
    signal.SIGSEGV: "a crash in native code; the log has the place",
    signal.SIGABRT: "native code gave up; the log has the place",
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
    if status == LOST_A_PEER:
        return (
            "a worker lost the others it computes with, and none of this host told why; find the"
            " first error in the logs of all hosts"
        )
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
