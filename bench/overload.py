"""Three times what a server can answer, for a minute; and a stop with requests in flight."""

import math
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
from server import Server

Seen = dict[str, Any]

TIMES_CAPACITY, MAX_CONNECTIONS = 3.0, 512


def overload(server: Server, image: Path, *, connections: int, full: int, seconds: int) -> Seen:
    """Return what came of arrivals at three times the throughput of the full load.

    `p99_ms` counts from the arrival, `p99_from_sending_ms` leaves out what a request waited for
    one of the client's connections.
    """
    full_load = server.load(image, connections=connections, seconds=full)
    pids, memory = server.pids(), server.memory_mib()
    rate = TIMES_CAPACITY * full_load["throughput"]
    with ThreadPoolExecutor(1) as pool:
        pinging = pool.submit(ping, server, seconds)
        seen = server.load(image, connections=MAX_CONNECTIONS, seconds=seconds, rate=rate)
        pings = pinging.result()
    growth, answers = server.memory_mib() / memory - 1, seen.pop("answers")
    accepted = [since for status, since, _ in answers if status == "200"]
    refused = [since for status, since, _ in answers if status in ("429", "503")]
    p99_ms = quantile(accepted, 0.99)
    p99_sent_ms = quantile([sent for status, _, sent in answers if status == "200"], 0.99)
    lost = seen["errors"] - seen["broken"].get("status", 0)
    return {
        "arrivals_per_second": rate,
        "full_load": full_load,
        **seen,
        "throughput": len(accepted) / seen["seconds"],
        "p50_ms": quantile(accepted, 0.5),
        "p99_ms": p99_ms,
        "p99_from_sending_ms": p99_sent_ms,
        "slowest_ms": max(accepted, default=math.nan),
        "refused_p99_ms": quantile(refused, 0.99),
        "p99_over_full_load": p99_ms / full_load["p99_ms"],
        "p99_from_sending_over_full_load": p99_sent_ms / full_load["p99_ms"],
        "by_status": Counter(status for status, _, _ in answers),
        "refused_share": len(refused) / max(1, seen["answered"]),
        "errors": seen["answered"] - len(accepted) - len(refused) + lost,
        "processes_lost": len(pids - server.pids()),
        "memory_before_mib": memory,
        "memory_growth": growth,
        "ping_p99_ms": quantile([ms for _, ms in pings], 0.99),
        "ping_slowest_ms": max(ms for _, ms in pings),
        "ping_errors": sum(status != 200 for status, _ in pings),
    }


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else math.nan


def ping(server: Server, seconds: float) -> list[tuple[int, float]]:
    """Ping 20 times a second; return statuses and milliseconds."""
    until, found = time.monotonic() + seconds, []
    while time.monotonic() < until:
        began = time.monotonic()
        status, _ = server.ask("GET", "/ping")
        found.append((status, (time.monotonic() - began) * 1e3))
        time.sleep(max(0.0, began + 0.05 - time.monotonic()))
    return found


def drain(server: Server, image: Path, *, connections: int) -> Seen:
    """Send a request on each connection, and SIGTERM with the first answer; return the others'."""
    body = image.read_bytes()
    head = "POST /invocations HTTP/1.1\r\nHost: bench\r\nContent-Type: image/png\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    address, outcomes = ("127.0.0.1", server.port), Counter[str]()
    links = [socket.create_connection(address, timeout=30) for _ in range(connections)]
    for link in links:  # the server knows every connection by now
        link.sendall(request)
        status_of(link)
    for link in links:
        link.sendall(request)
    answered = select.select(links, [], [])[0]
    server.process.terminate()
    for link in links:
        with link:
            outcomes[status_of(link)] += link not in answered
    return {
        "under_way": connections - len(answered),
        "answered": outcomes["200"],
        "refused": outcomes["503"] + outcomes["429"],
        "lost": outcomes["lost"],
        "outcomes": +outcomes,
        "exit_code": server.process.wait(timeout=60),
    }


def status_of(link: socket.socket) -> str:
    """Read an answer; return its status, or `lost`."""
    answer = HTTPResponse(link)
    try:
        answer.begin()
        answer.read()
    except (OSError, HTTPException):
        return "lost"
    return str(answer.status)
