"""Clients of nginx, run in its network: `proxy_clients.py SCENE` prints what they saw as JSON."""

import http.client
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PORT = 80
HEADS, BODIES, ROUNDS = 400, 200, 4
# Seconds: far above what an answer may take, and above the two timeouts in nginx.conf.
PATIENCE, TIMEOUTS = 30, 13
LIMIT = 25 * 2**20
OUR_ADDRESS, HOSTILE_ADDRESS = "127.0.0.1", "127.0.0.2"
HALF_HEAD = b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Part: "
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
HALF_BODY = HEAD % 9000 + b"x"


def ask(path: str, body: bytes | None = None, address: str = OUR_ADDRESS) -> dict[str, Any]:
    """Ask once; return status, seconds, and whether the server behind nginx named the request."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(
        "127.0.0.1", PORT, timeout=PATIENCE, source_address=(address, 0)
    )
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        answer.read()
        status, named = answer.status, answer.getheader("X-Request-Id") is not None
    except OSError:
        status, named = 0, False
    finally:
        connection.close()
    return {"path": path, "status": status, "seconds": time.monotonic() - began, "named": named}


def hold(data: bytes, address: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", PORT), PATIENCE, (address, 0))
    connection.sendall(data)
    connection.setblocking(False)
    return connection


def is_open(connection: socket.socket) -> bool:
    """Whether nginx neither answered nor closed."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def good(slice_: bytes) -> object:
    return [ask("/ping"), ask("/invocations", slice_)]


def slow(slice_: bytes) -> object:
    """Ask while partial heads and bodies from many addresses are open; then wait for their end."""
    held = [hold(HALF_HEAD, f"127.1.0.{1 + number % 250}") for number in range(HEADS)]
    held += [hold(HALF_BODY, f"127.2.0.{1 + number}") for number in range(BODIES)]
    began = time.monotonic()
    time.sleep(1)
    with ThreadPoolExecutor(2 * ROUNDS) as clients:
        answers = []
        for _ in range(ROUNDS):
            answers.append(clients.submit(ask, "/ping"))
            answers.append(clients.submit(ask, "/invocations", slice_))
            time.sleep(1)
    still_open = sum(map(is_open, held))
    time.sleep(max(0.0, began + TIMEOUTS - time.monotonic()))
    return {
        "answers": [answer.result() for answer in answers],
        "open": still_open,
        "open_after_timeouts": sum(map(is_open, held)),
    }


def many(slice_: bytes) -> object:
    """Ask while one address has more requests in progress than it may."""
    held = [hold(HALF_BODY, HOSTILE_ADDRESS) for _ in range(40)]
    time.sleep(1)
    refused = ask("/invocations", slice_, HOSTILE_ADDRESS)
    other = ask("/invocations", slice_)
    for connection in held:
        connection.close()
    time.sleep(1)
    later = ask("/invocations", slice_, HOSTILE_ADDRESS)
    return {"refused": refused, "other": other, "later": later}


def large(slice_: bytes) -> object:
    """Send as much as nginx takes, then announce a byte more."""
    taken = ask("/invocations", slice_.ljust(LIMIT, b"\0"))
    connection = socket.create_connection(("127.0.0.1", PORT), PATIENCE)
    connection.sendall(HEAD % (LIMIT + 1))
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    named = answer.getheader("X-Request-Id") is not None
    return {"taken": taken, "refused": {"status": answer.status, "named": named}}


if __name__ == "__main__":
    scenes = {"good": good, "slow": slow, "many": many, "large": large}
    print(json.dumps(scenes[sys.argv[1]](Path(__file__).with_name("slice.jpg").read_bytes())))
