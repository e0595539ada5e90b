"""Send one image over many connections for some seconds: the client where `wrk` is not installed.

    python bench/http_client.py PORT FILE CONNECTIONS SECONDS

Every connection sends as soon as it has its answer. Prints JSON with the names of bench/wrk.lua.
Written in Python, it needs more of the machine than wrk: its figures are a lower bound.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

TIMEOUT_SECONDS = 30


class Client:
    """The connections together: the milliseconds of each answer, and what went wrong."""

    def __init__(self, port: int, body: bytes, seconds: float) -> None:
        head = (
            "POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.request, self.port = head.encode() + body, port
        self.end = time.monotonic() + seconds
        self.milliseconds: list[float] = []
        self.errors: Counter[str] = Counter()

    async def connection(self) -> None:
        """Ask until the time is over."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            self.errors["connect"] += 1
            return
        try:
            while time.monotonic() < self.end:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self.ask(reader, writer)
        except TimeoutError:
            self.errors["timeout"] += 1
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.errors["read"] += 1
        finally:
            writer.close()

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the request and read its answer."""
        began = time.perf_counter()
        writer.write(self.request)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        await reader.readexactly(int(fields[b"content-length"]))
        self.milliseconds.append((time.perf_counter() - began) * 1e3)
        self.errors["status"] += head.split()[1] != b"200"


async def main() -> None:
    port, file, connections, seconds = sys.argv[1:]
    client = Client(int(port), Path(file).read_bytes(), float(seconds))
    began = time.monotonic()
    await asyncio.gather(*(client.connection() for _ in range(int(connections))))
    spent = time.monotonic() - began
    hundredths = statistics.quantiles(client.milliseconds or [0, 0], n=100, method="inclusive")
    kinds = ("connect", "read", "write", "status", "timeout")
    found = {
        **{kind: client.errors[kind] for kind in kinds},
        "answered": len(client.milliseconds),
        "seconds": spent,
        "p50_ms": hundredths[49],
        "p99_ms": hundredths[98],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
