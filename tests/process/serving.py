"""Start container/serve, ask it over HTTP, and end it; for the tests that need a server process."""

import http.client
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from alexmri.contract.network import free_port

from .conftest import PATIENCE, REPOSITORY, Tree

PING_SECONDS = 2


def received(connection: socket.socket) -> tuple[int, bytes]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def post(length: int) -> bytes:
    """Return the head of a request for a picture."""
    return (
        b"POST /invocations HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


class Server:
    """A running server, asked one request per connection."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process = process
        self.port = port

    def connect(self, raw: bytes = b"", timeout: float = PATIENCE) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        connection.sendall(raw)
        return connection

    def ping_in_time(self) -> int:
        """Return the status of a ping, which the platform waits for no longer than this."""
        raw = b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\n"
        with self.connect(raw, PING_SECONDS) as connection:
            return received(connection)[0]

    def ask(
        self, path: str, body: object = None, content_type: str = "", **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {"Content-Type": content_type} if content_type else {}
        chunked = headers.get("Transfer-Encoding") == "chunked"
        method = "GET" if body is None else "POST"
        with closing(connection):
            connection.request(method, path, body, sent | headers, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait_until_ready(self) -> set[int]:
        """Wait for a good ping; return the statuses seen before."""
        seen: set[int] = set()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[0]
            try:
                status, _ = self.ask("/ping")
            except OSError:
                status = 0
            if status == 200:
                return seen
            seen.add(status)
            time.sleep(0.1)
        raise AssertionError(f"no good ping; before: {seen}")


@contextmanager
def serving(tree: Tree, **environment: str) -> Iterator[Server]:
    port = free_port()
    own = Tree(tree.root, {"SAGEMAKER_BIND_TO_PORT": str(port), **environment})
    with running(own.start("serve"), port) as server:
        yield server


@contextmanager
def running(process: "subprocess.Popen[str]", port: int) -> Iterator[Server]:
    server = Server(process, port)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


class WatchedServer(Server):
    """A server whose output goes to files, so that nobody has to read it meanwhile."""

    folder: Path

    def printed(self) -> str:
        return "".join((self.folder / name).read_text() for name in ("stdout", "stderr"))

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def ready_count(self) -> int:
        return self.printed().count(" is ready: ")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.printed()
            assert self.process.poll() is None, self.printed()
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextmanager
def watched(tree: Tree, folder: Path, **environment: str) -> Iterator[WatchedServer]:
    """Run container/serve with two processes and yield it once both are ready."""
    port = free_port()
    workers = {"ALEXMRI_WORKERS": "2", "SAGEMAKER_CONTAINER_LOG_LEVEL": "100"}
    own = Tree(tree.root, {"SAGEMAKER_BIND_TO_PORT": str(port), **workers, **environment})
    folder.mkdir(exist_ok=True)
    with (folder / "stdout").open("w") as stdout, (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [REPOSITORY / "container" / "serve"],
            env=own.environment(),
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    server = WatchedServer(process, port)
    server.folder = folder
    count = int(own.extra["ALEXMRI_WORKERS"])
    with running(process, port):
        server.wait_until(lambda: server.ready_count() == count)
        yield server
