"""container/serve and `alexmri serve` as processes: HTTP, limits, and the signal to stop."""

import base64
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from PIL import Image

from .conftest import PATIENCE, REPOSITORY, Tree

# In which a platform expects the answer to a ping.
PING_SECONDS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


@pytest.fixture(scope="module")
def server(trained: Tree) -> Iterator[Server]:
    with serving(trained) as server:
        seen = server.wait_until_ready()
        # Connection refused (0) or not loaded yet (503), nothing else.
        assert seen <= {0, 503}
        yield server


@pytest.fixture(scope="module")
def single(trained: Tree) -> Iterator[Server]:
    """A server of one process, whose threads can all be taken, and with little patience."""
    with serving(trained, ALEXMRI_WORKERS="1", ALEXMRI_TIMEOUT_SECONDS="4") as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def slice_file(trained: Tree) -> Path:
    return trained.root / "input" / "data" / "training" / "NonDemented" / "3 (1).jpg"


def test_every_kind_of_request_gets_the_same_answer(
    server: Server, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with Image.open(slice_file) as picture:
        picture.save(tmp_path / "slice.png")
    text = base64.b64encode(jpeg).decode()
    requests = (
        (jpeg, "image/jpeg"),
        ((tmp_path / "slice.png").read_bytes(), "image/png"),
        (json.dumps({"image": text}).encode(), "application/json"),
        (json.dumps({"instances": [{"b64": text}]}).encode(), "application/json; charset=utf-8"),
    )
    answers = [server.ask("/invocations", body, kind) for body, kind in requests]
    assert [status for status, _ in answers] == [200] * 4
    assert len({json.dumps(json.loads(content)["predictions"]) for _, content in answers}) == 1
    (prediction,) = json.loads(answers[0][1])["predictions"]
    assert set(prediction["probabilities"]) == {"MildDemented", "NonDemented"}


def test_the_answer_is_that_of_the_command_line(
    server: Server, trained: Tree, slice_file: Path
) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-c", "from alexmri.cli import main; main()"),
            *("predict", str(trained.root / "model"), str(slice_file), "--json"),
        ],
        env=trained.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    by_command = json.loads(result.stdout)
    _, content = server.ask("/invocations", slice_file.read_bytes(), "image/jpeg")
    by_server = json.loads(content)
    assert by_server["model_version"] == by_server["model"] == by_command["model"]
    expected = by_command["predictions"][0]["probabilities"]
    # The command computes in float32, the server in the fastest arithmetic that agrees.
    assert by_server["predictions"][0]["probabilities"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}])
def test_a_client_that_sends_too_much_gets_the_reason(
    server: Server, headers: dict[str, str]
) -> None:
    body = bytes(40_000_000)
    status, content = server.ask(
        "/invocations", iter([body]) if headers else body, "image/png", **headers
    )
    assert status == 413, content
    assert json.loads(content)["error"]["code"] == "payload_too_large"


def test_a_refusal_reaches_a_client_that_is_still_sending(server: Server) -> None:
    status, content = server.ask("/invocations", bytes(20_000_000), "image/png", Accept="image/gif")
    assert (status, json.loads(content)["error"]["code"]) == (406, "not_acceptable")


def test_malformed_chunks_are_the_clients_fault(server: Server) -> None:
    head = post(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with server.connect(head + b"ZZ\r\nAA\r\n0\r\n\r\n") as connection:
        status, content = received(connection)
        assert (status, json.loads(content)["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        pytest.param(b"", 300, id="say nothing"),
        pytest.param(post(100) + b"x", 300, id="send half a request"),
        pytest.param(
            b"GET /ping HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n", 70, id="do not close"
        ),
    ],
)
def test_ping_is_answered_whatever_clients(single: Server, raw: bytes, count: int) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(single.connect(raw)) for _ in range(count)]
        if raw.startswith(b"GET"):
            assert {received(connection)[0] for connection in crowd} == {200}
        assert single.ping_in_time() == 200
        if raw.startswith(b"POST"):
            # Some had to be refused for that.
            readable, _, _ = select.select(crowd, [], [], PATIENCE)
            status, content = received(readable[0])
            assert (status, json.loads(content)["error"]["code"]) == (429, "too_many_requests")


def test_a_client_that_sends_a_byte_now_and_then_is_told_at_the_deadline(single: Server) -> None:
    # Well before any single read would have lasted too long.
    patience = time.monotonic() + 15
    with single.connect(post(1000)) as connection:
        while not select.select([connection], [], [], 0.1)[0]:
            assert time.monotonic() < patience
            connection.sendall(b"x")
        status, content = received(connection)
        assert (status, json.loads(content)["error"]["code"]) == (408, "request_timeout")
        # What comes after is no request.
        assert connection.recv(1) == b""


def test_what_is_no_picture_is_told_without_a_path(server: Server, slice_file: Path) -> None:
    for body in (b"junk", slice_file.read_bytes()[:700]):
        status, content = server.ask("/invocations", body, "image/jpeg")
        assert status == 422
        message = json.loads(content)["error"]["message"]
        assert message.startswith("the picture cannot be read as a picture: ")
        assert "/" not in message


def test_a_request_under_way_is_answered_before_the_server_ends(
    trained: Tree, slice_file: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="1") as server:
        server.wait_until_ready()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.putrequest("POST", "/invocations?explain=gradcam")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", str(len(jpeg)))
        connection.endheaders(jpeg[:1000])
        # A thread of the server waits for the rest once the log tells of a later request.
        assert server.ask("/invocations", jpeg, "image/jpeg")[0] == 200
        assert server.process.stdout
        while "request" not in server.process.stdout.readline():
            pass
        server.process.send_signal(signal.SIGTERM)
        while (status := server.ask("/ping")[0]) == 200:
            time.sleep(0.01)
        assert status == 503
        refused, content = server.ask("/invocations", jpeg, "image/jpeg")
        assert (refused, json.loads(content)["error"]["code"]) == (503, "draining")
        connection.send(jpeg[1000:])
        answer = connection.getresponse()
        assert answer.status == 200
        (prediction,) = json.loads(answer.read())["predictions"]
        assert prediction["gradcam_png"]
        connection.close()
        printed, _ = server.process.communicate(timeout=25)
        assert server.process.returncode == 0, printed


def test_a_server_stopped_while_it_starts_ends_well(trained: Tree) -> None:
    with serving(trained) as server:
        assert server.process.stdout
        while "Booting worker" not in server.process.stdout.readline():
            pass
        server.process.send_signal(signal.SIGTERM)
        printed, _ = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0, printed
        assert "Traceback" not in printed


def test_more_connections_than_files_end_no_process(trained: Tree) -> None:
    port = free_port()
    tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": str(port), "ALEXMRI_WORKERS": "1"})
    process = subprocess.Popen(
        ["bash", "-c", 'ulimit -n 640; exec "$0"', str(REPOSITORY / "container" / "serve")],
        env=tree.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with running(process, port) as server:
        server.wait_until_ready()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        before = children.read_text()
        with ExitStack() as stack:
            for _ in range(700):
                stack.enter_context(server.connect())
        assert server.ask("/ping")[0] == 200
        assert children.read_text() == before


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason(
    trained: Tree, tmp_path: Path
) -> None:
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained.root / "model", tree.root / "model")
    with (tree.root / "model" / "model.safetensors").open("r+b") as weights:
        weights.seek(100_000)
        weights.write(b"damage")
    with serving(tree) as server:
        printed, _ = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode not in (0, None)
        assert printed.count("model.safetensors is damaged") == printed.count("error: ") == 1
        assert "Traceback" not in printed


def test_a_model_that_stops_answering_ends_the_server_with_the_reason(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    """As after an error of CUDA, which every later call repeats."""
    (tmp_path / "broken.py").write_text(
        """
from alexmri.model.predictor import Predictor
from alexmri.serving.app import serve

works, broken = Predictor.predict, []

def predict(self, pixels_NCHW):
    broken.extend([True] * bool(pixels_NCHW.any()))
    if broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return works(self, pixels_NCHW)

Predictor.predict = predict
""",
        encoding="utf-8",
    )
    port = free_port()
    tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": str(port), "ALEXMRI_WORKERS": "2"})
    configuration = ["--config", "python:alexmri.serving.gunicorn_conf", "--chdir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *configuration, "broken:serve()"],
        env=tree.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with running(process, port) as server:
        server.wait_until_ready()
        try:
            status, content = server.ask("/invocations", slice_file.read_bytes(), "image/jpeg")
            assert (status, json.loads(content)["error"]["code"]) == (500, "internal_error")
        except (OSError, http.client.HTTPException):
            pass  # it was gone before it could answer
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode not in (0, None)
        assert printed.count("error: internal error: RuntimeError: CUDA error: an illegal") == 1


def test_processes_share_their_requests_and_their_metrics(trained: Tree, slice_file: Path) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="2") as server:
        server.wait_until_ready()
        with ThreadPoolExecutor(16) as clients:
            asked = [
                clients.submit(server.ask, "/invocations", jpeg, "image/jpeg") for _ in range(64)
            ]
            assert {future.result()[0] for future in asked} == {200}
        wanted = 'alexmri_requests_total{status="200"} 64.0'
        deadline = time.monotonic() + PATIENCE
        # The process that is asked has counted its own; the other one does so within a moment.
        while wanted not in server.ask("/metrics")[1].decode():
            assert time.monotonic() < deadline, server.ask("/metrics")[1].decode()
        server.process.send_signal(signal.SIGTERM)
        printed, _ = server.process.communicate(timeout=30)
        assert server.process.returncode == 0
        assert printed.count("event=request status=200") == 64
        assert printed.count(" is ready; ") == 2


def test_a_variable_that_is_wrong_ends_the_server_in_one_sentence(trained: Tree) -> None:
    tree = Tree(trained.root, {"SAGEMAKER_TS_BATCH_SIZE": "many"})
    done = tree.run("serve")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: SAGEMAKER_TS_BATCH_SIZE is 'many'; it must be a number from 0 to 1024"
    ]


def test_people_serve_a_model_directory_of_their_own(trained: Tree) -> None:
    port = free_port()
    command = [sys.executable, "-c", "from alexmri.cli import main; main()", "serve"]
    process = subprocess.Popen(
        [*command, str(trained.root / "model"), "--port", str(port)],
        env=Tree(trained.root / "elsewhere").environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    Server(process, port).wait_until_ready()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0, printed
    assert f"http://127.0.0.1:{port}" in printed


def test_a_process_that_is_killed_is_replaced_and_the_others_go_on(
    trained: Tree, slice_file: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with serving(trained, ALEXMRI_WORKERS="2") as server:
        server.wait_until_ready()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        first, second = children.read_text().split()
        os.kill(int(first), signal.SIGKILL)

        def wait_for_the_successor() -> None:
            assert server.process.stdout
            for _ in range(3):
                while " is ready; " not in (line := server.process.stdout.readline()):
                    assert line, "the server has ended"

        with ThreadPoolExecutor(1) as reader:
            ready = reader.submit(wait_for_the_successor)
            # Meanwhile the successor would refuse, and leaves all to the other process.
            while not ready.done():
                try:
                    assert server.ask("/invocations", jpeg, "image/jpeg")[0] == 200
                except OSError:
                    continue  # a connection the killed process had
            ready.result()
        after = children.read_text().split()
        assert len(after) == 2
        assert second in after
        assert first not in after
