"""How many workers train on a host, and what each is told about its place among all.

The variables are torchrun's own (env://), so a worker does not care who started it.
"""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from alexmri.errors import UserError

LOOPBACK = "127.0.0.1"
# Below the ports that the kernel hands out (32768 and up), so nobody gets it by chance.
FREE_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the worker of rank 0 listens, and which network interface leads there, if it matters.

    Unset, PyTorch looks for the interface by the name of this machine, which need not resolve.
    """

    address: str
    port: int
    interface: str | None


def meeting_on_one_host() -> Meeting:
    """Return a place where workers of this host meet, and nobody from outside."""
    return Meeting(LOOPBACK, free_port(), "lo")


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


def places(counts: Sequence[int], meeting: Meeting, *, host: int = 0) -> list[dict[str, str]]:
    """Return the variables of each worker on a host; `counts` says how many each host has."""
    before = sum(counts[:host])
    common = {
        "WORLD_SIZE": str(sum(counts)),
        "LOCAL_WORLD_SIZE": str(counts[host]),
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
        **({"GLOO_SOCKET_IFNAME": meeting.interface} if meeting.interface else {}),
    }
    return [
        {**common, "RANK": str(before + local), "LOCAL_RANK": str(local)}
        for local in range(counts[host])
    ]


def free_port() -> int:
    """Return a port of this host that nobody listens on."""
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        with socket.socket() as probe:
            # As torch's server does: a port that was used a minute ago will do.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise UserError(f"no port from {FREE_PORTS.start} to {FREE_PORTS.stop - 1} is free")
