"""Three times what a server can answer, for a minute; and a stop with requests under way."""

from pathlib import Path
from typing import Any

from servers import Contender, Payload, Server, result_of, running, start_client

TIMES_CAPACITY = 3.0
# An open loop needs a connection for each request under way; a platform's proxy has its limit too.
MOST_CONNECTIONS = 512
PINGS_PER_SECOND = 20.0


def overload_and_drain(
    contender: Contender,
    bundle: Path,
    payload: Payload,
    *,
    connections: int,
    full_load_seconds: float,
    overload_seconds: float,
) -> dict[str, Any]:
    """Return `overload` and `drain`, both of one start of the server."""
    with running(contender.command, contender.first(), bundle, payload) as server:
        warmup = full_load_seconds / 4
        full = server.load(
            payload.job(
                server.port, connections=connections, warmup=warmup, seconds=full_load_seconds
            )
        )
        return {
            "overload": _overload(server, payload, full, overload_seconds),
            "drain": _drain(server, payload, connections),
        }


def _overload(
    server: Server, payload: Payload, full: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return what came of arrivals at three times the throughput of `full`, the full load.

    `p99_over_full_load` counts from the arrival; `p99_from_sending_over_full_load` leaves out what
    a request waited for one of the client's connections.
    """
    rate = TIMES_CAPACITY * full["throughput"]
    pids, memory = server.pids(), server.memory_mib()
    ping = start_client(
        Payload(b"").job(
            server.port,
            connections=8,
            seconds=seconds,
            rate=PINGS_PER_SECOND,
            method="GET",
            path="/ping",
        )
    )
    hurried = server.load(
        payload.job(server.port, connections=MOST_CONNECTIONS, seconds=seconds, rate=rate)
    )
    pinged = result_of(ping)
    after = server.memory_mib()
    del hurried["answer"]
    return {
        "arrivals_per_second": rate,
        "full_load": full,
        "p99_over_full_load": _ratio(hurried["p99_ms"], full["p99_ms"]),
        "p99_from_sending_over_full_load": _ratio(hurried["p99_from_sending_ms"], full["p99_ms"]),
        "processes_lost": len(pids - server.pids()),
        "memory_before_mib": memory,
        "memory_growth": after / memory - 1,
        "ping_p99_ms": pinged["p99_ms"],
        "ping_slowest_ms": pinged["slowest_ms"],
        "ping_errors": pinged["errors"] + pinged["by_status"].get("503", 0),
        **hurried,
    }


def _drain(server: Server, payload: Payload, connections: int) -> dict[str, Any]:
    """Return what became of the requests under way when the server was told to stop."""
    client = server.load(
        payload.job(
            server.port, connections=connections, seconds=2.0, signal_pid=server.process.pid
        )
    )
    outcomes = client["after_end"]
    return {
        "under_way": client["under_way_at_end"],
        "answered": outcomes.get("200", 0),
        "refused": outcomes.get("503", 0) + outcomes.get("429", 0),
        "lost": outcomes.get("lost", 0),
        "outcomes": outcomes,
        "exit_code": server.process.wait(timeout=60),
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
