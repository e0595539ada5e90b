"""Start a server for a bench, send it load, watch its processes, and end it."""

import http.client
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from alexmri.contract.network import free_port
from alexmri.contract.resources import cpu_cores

BENCH = Path(__file__).parent
PEERS_INSTALLED = BENCH / ".peers"
PATIENCE_SECONDS = 120.0
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
BROKEN = ("connect", "read", "write", "status", "timeout")
OURS = "{python} {bench}/../container/serve"


class Server:
    """A running server and all its processes: those of its session."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of an answer; status 0 where there was none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        return 0, b""

    def wait_for(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Ask until the status is 200; return the answer.

        Raises:
            RuntimeError: the server ended or never answered; with the end of its log.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            status, answer = self.ask(method, path, body)
            if status == 200:
                return answer
            time.sleep(0.01)
        log = self.log.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the server did not start: {log[-2000:]}")

    def load(
        self, image: Path, *, connections: int, seconds: int, rate: float | None = None
    ) -> dict[str, Any]:
        """Let `wrk` send the image, without it bench/http_client.py, which knows no `rate`.

        Returns what the client saw and what both sides took; see wrk.lua.
        """
        if rate or shutil.which("wrk"):
            command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout=30s"]
            command += ["-s", str(BENCH / "wrk.lua"), f"http://127.0.0.1:{self.port}/invocations"]
            command += ["--", str(image), *([str(rate)] if rate else [])]
        else:
            command = [sys.executable, str(BENCH / "http_client.py"), str(self.port), str(image)]
            command += [str(connections), str(seconds)]
        client, server = _cpu_of_children(), self._cpu_seconds()
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        *lines, last = printed.splitlines()
        seen: dict[str, Any] = json.loads(last)
        cpu = self._cpu_seconds() - server
        broken = {kind: n for kind in BROKEN if (n := seen.pop(kind))}
        if not seen["answered"]:
            seen |= {"p50_ms": math.inf, "p99_ms": math.inf}
        if rate:
            words = [line.split() for line in lines if line.startswith("answer ")]
            seen["answers"] = [
                (status, float(since), float(sent)) for _, status, since, sent in words
            ]
        return {
            **seen,
            "throughput": (seen["answered"] - broken.get("status", 0)) / seen["seconds"],
            "errors": sum(broken.values()),
            "broken": broken,
            "client_cores": (_cpu_of_children() - client) / seen["seconds"],
            "server_cores": cpu / seen["seconds"],
            "server_cpu_ms_per_answer": cpu / max(1, seen["answered"]) * 1e3,
        }

    def pids(self) -> set[int]:
        return set(self._processes())

    def memory_mib(self) -> float:
        """Return its proportional set size: pages shared by n processes count 1/n in each."""
        kilobytes = 0
        for pid in self.pids():
            with suppress(OSError, IndexError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
                kilobytes += int(rollup.split("\nPss:")[1].split()[0])
        return kilobytes / 1024

    def stop(self) -> None:
        """End all its processes: some peers leave theirs behind."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + 3
            while self.pids() and time.monotonic() < until:
                self.process.poll()
                time.sleep(0.05)
        self.process.wait()

    def _cpu_seconds(self) -> float:
        return sum(self._processes().values())

    def _processes(self) -> dict[int, float]:
        """Return its living processes and their processor time in seconds."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    ticks = int(fields[11]) + int(fields[12])
                    found[int(stat.parent.name)] = ticks / TICKS_PER_SECOND
        return found


@contextmanager
def running(command: str, bundle: Path, settings: Mapping[str, Any]) -> Iterator[Server]:
    """Start a server on `bundle`, give it at once, end it afterwards.

    The command may name {python}, {bench}, {port} and the settings. A peer finds them as JSON in
    $BENCH_SERVER.
    """
    port, threads = free_port(), max(1, cpu_cores() // settings.get("workers", 1))
    full = {"threads": threads, "bundle": str(bundle.resolve()), "port": port, **settings}
    words = [each.format(python=sys.executable, bench=BENCH, **full) for each in command.split()]
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ALEXMRI_", "SAGEMAKER_"))
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").symlink_to(bundle.resolve())
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=inherited
                | {
                    # As ours sets it: numpy's own threads would spin beside the forward pass.
                    "OPENBLAS_NUM_THREADS": "1",
                    "PYTHONPATH": f"{BENCH.parent / 'code'}{os.pathsep}{PEERS_INSTALLED}",
                    "BENCH_SERVER": json.dumps(full),
                    "SAGEMAKER_BASE_DIR": folder,
                    "SAGEMAKER_BIND_TO_PORT": str(port),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, port, log)
        try:
            yield server
        finally:
            server.stop()


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
