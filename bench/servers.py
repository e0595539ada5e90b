"""Start, watch and stop the servers that bench/serve.py compares, each in a session of its own."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from load import Job

from alexmri.contract.resources import cpu_cores

BENCH = Path(__file__).parent
REPOSITORY = BENCH.parent
PEERS = BENCH / "peers"
INSTALLED = BENCH / ".serving-peers"
REQUIREMENTS = REPOSITORY / "requirements" / "bench.txt"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120.0
# After its first answer a server may still load the model in further processes: so long at most.
SETTLE_SECONDS = 3.0

Settings = dict[str, Any]
Command = list[str | Path]


@dataclass(frozen=True)
class Payload:
    """What every request carries."""

    body: bytes
    content_type: str = "image/png"

    def job(self, port: int, **load: Any) -> Job:
        body = base64.b64encode(self.body).decode()
        return Job(port=port, body=body, content_type=self.content_type, **load)


@dataclass(frozen=True)
class Contender:
    """A server to compare; `knobs` are the settings searched, the first of each to start with."""

    name: str
    command: Callable[[Settings], Command]
    knobs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def first(self) -> Settings:
        return {knob: values[0] for knob, values in self.knobs.items()}


def contenders() -> list[Contender]:
    cores = cpu_cores()
    workers = tuple(dict.fromkeys((cores, 1)))
    litserve = {"workers": workers, "fast_queue": (False, True), "api_servers": (1, 2)}
    unbatched = {**litserve, "batch": (1,), "batch_timeout": (0.0,)}
    batched = {**litserve, "batch": (64, 16), "batch_timeout": (0.002, 0.01, 0.0)}
    return [
        Contender("ours", ours),
        Contender("litserve_batched", run_litserve, {**batched, "workers": workers[::-1]}),
        Contender("litserve_unbatched", run_litserve, unbatched),
        Contender("fastapi", run_fastapi, {"workers": workers, "thread_pool": (False, True)}),
        Contender("flask", run_flask, {"workers": workers, "request_threads": (8, 32)}),
    ]


def ours(settings: Settings) -> Command:
    return [sys.executable, REPOSITORY / "container" / "serve"]


def noop(settings: Settings) -> Command:
    """Return the command of the same gunicorn in front of an application that does nothing."""
    config = "python:alexmri.serving.gunicorn_config"
    gunicorn: Command = [sys.executable, "-m", "gunicorn", "--config", config]
    return [*gunicorn, "--chdir", PEERS, "serve_noop:app"]


def run_litserve(settings: Settings) -> Command:
    return [peers_python(), PEERS / "serve_litserve.py"]


def run_fastapi(settings: Settings) -> Command:
    uvicorn: Command = [peers_python(), "-m", "uvicorn", "--app-dir", PEERS, "--no-access-log"]
    where = ["--port", str(settings["port"]), "--workers", str(settings["workers"])]
    return [*uvicorn, "--log-level", "warning", *where, "serve_fastapi:app"]


def run_flask(settings: Settings) -> Command:
    gunicorn: Command = [
        peers_python(),
        "-m",
        "gunicorn",
        "--worker-class",
        "gthread",
        "--chdir",
        PEERS,
    ]
    size = [f"--workers={settings['workers']}", f"--threads={settings['request_threads']}"]
    where = f"--bind=127.0.0.1:{settings['port']}"
    return [*gunicorn, *size, where, "--keep-alive=75", "--no-control-socket", "serve_flask:app"]


def peers_python() -> Path:
    return INSTALLED / "bin" / "python"


def install_peers() -> None:
    """Make the environment of the peers, once for each requirements/bench.txt.

    It sees what the running interpreter has installed, so that torch is there only once.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    stamp = INSTALLED / "requirements.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    venv.create(INSTALLED, system_site_packages=True, with_pip=True, clear=True)
    # Of an interpreter that is itself in an environment, --system-site-packages means another one.
    own = [path for path in sys.path if path.endswith("site-packages")]
    (target,) = INSTALLED.glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in own]
    (target / "running_interpreter.pth").write_text("".join(lines), encoding="utf-8")
    pip: Command = [peers_python(), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True)
    stamp.write_text(wanted, encoding="utf-8")


class Server:
    """A running server and all its processes."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def pids(self) -> set[int]:
        """Return its processes: those of its session, also when their parent has left."""
        return {pid for pid, fields in _processes() if int(fields[3]) == self.process.pid}

    def cpu_seconds(self) -> float:
        """Return the processor time of its living processes."""
        ours = (fields for _, fields in _processes() if int(fields[3]) == self.process.pid)
        return sum(int(each[11]) + int(each[12]) for each in ours) / TICKS_PER_SECOND

    def memory_mib(self) -> float:
        """Return its proportional set size: pages shared by n processes count 1/n in each."""
        kilobytes = 0
        for pid in self.pids():
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
            except OSError:
                continue
            kilobytes += int(rollup.split("\nPss:")[1].split()[0]) if "\nPss:" in rollup else 0
        return kilobytes / 1024

    def wait_until_ready(self, payload: Payload) -> None:
        """Wait for a good answer, and for its processes to have nothing more to do.

        Raises:
            RuntimeError: it ended or does not answer; with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(payload):
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"the server did not start: {last}")
            time.sleep(0.1)
        settled = time.monotonic() + SETTLE_SECONDS
        busy = True
        while busy and time.monotonic() < settled:
            before = self.cpu_seconds()
            time.sleep(0.5)
            busy = self.cpu_seconds() - before > 0.1

    def load(self, job: Job) -> dict[str, Any]:
        """Run the client; return what it saw, and what processor time the server took."""
        before = self.cpu_seconds()
        result = run_client(job)
        cpu = self.cpu_seconds() - before
        return {
            **result,
            "server_cores": cpu / result["seconds_in_all"],
            "server_cpu_ms_per_answer": cpu / max(1, result["answered_in_all"]) * 1e3,
        }

    def stop(self) -> None:
        """End all its processes: the peers leave some behind when only their first one ends."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + 3
            while self.pids() and time.monotonic() < until:
                self.process.poll()
                time.sleep(0.05)
        self.process.wait()

    def _answers(self, payload: Payload) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request(
                "POST", "/invocations", payload.body, {"Content-Type": payload.content_type}
            )
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def running(
    command: Callable[[Settings], Command],
    settings: Settings,
    bundle: Path,
    payload: Payload,
    **extra: Any,
) -> Iterator[Server]:
    """Start a server on `bundle`, give it when it is ready, end it afterwards."""
    port = free_port()
    threads = max(1, cpu_cores() // settings.get("workers", 1))
    full = {**settings, "threads": threads, "bundle": str(bundle.resolve()), "port": port, **extra}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").symlink_to(bundle.resolve())
        log = Path(folder) / "log"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ALEXMRI_", "SAGEMAKER_"))
        }
        environment = inherited | {
            "PYTHONPATH": str(REPOSITORY / "code"),
            "BENCH_SERVER": json.dumps(full),
            "SAGEMAKER_BASE_DIR": folder,
            "SAGEMAKER_BIND_TO_PORT": str(port),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(full),
                env=environment,
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, port, log)
        try:
            server.wait_until_ready(payload)
            yield server
        finally:
            server.stop()


def start_client(job: Job) -> "subprocess.Popen[str]":
    client = subprocess.Popen(
        [sys.executable, "-S", BENCH / "load.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin
    client.stdin.write(json.dumps(asdict(job)))
    client.stdin.close()
    return client


def result_of(client: "subprocess.Popen[str]") -> dict[str, Any]:
    assert client.stdout
    printed = client.stdout.read()
    if client.wait():
        raise RuntimeError("the load client failed; its reason stands above")
    result: dict[str, Any] = json.loads(printed)
    return result


def run_client(job: Job) -> dict[str, Any]:
    return result_of(start_client(job))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield every process that has not ended, with the fields of its stat after the name."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            fields = stat.rpartition(")")[2].split()
            if fields[0] != "Z":
                yield int(entry.name), fields
