"""container/serve and clients that send too much, too slowly, or more than can be answered."""

import json
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import PATIENCE, REPOSITORY, Tree
from .serving import Server, free_port, post, received, running, serving


@pytest.fixture(scope="module")
def single(trained: Tree) -> Iterator[Server]:
    """A server of one process, whose threads can all be taken, and with little patience."""
    with serving(trained, ALEXMRI_WORKERS="1", ALEXMRI_TIMEOUT_SECONDS="4") as server:
        server.wait_until_ready()
        yield server


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
        pytest.param(b"P", 100, id="send a byte of a head"),
        pytest.param(post(100) + b"x", 100, id="send half a request"),
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


def test_more_connections_than_files_end_no_process(trained: Tree) -> None:
    port = free_port()
    tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": str(port), "ALEXMRI_WORKERS": "1"})
    few_files = ("bash", "-c", 'ulimit -n 640; exec "$0"')
    process = tree.spawn(*few_files, REPOSITORY / "container" / "serve")
    with running(process, port) as server:
        server.wait_until_ready()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        before = children.read_text()
        with ExitStack() as stack:
            for _ in range(700):
                stack.enter_context(server.connect())
        assert server.ask("/ping")[0] == 200
        assert children.read_text() == before


def test_a_full_server_refuses_at_once_on_new_and_kept_connections(
    trained: Tree, slice_file: Path
) -> None:
    jpeg = slice_file.read_bytes()
    raw = post(len(jpeg)) + jpeg
    named = raw.replace(b"Host: here", b"Host: here\r\nX-Amzn-SageMaker-Custom-Attributes: a=b")
    ping = b"GET /ping HTTP/1.1\r\nHost: here\r\n\r\n"
    # A batch with room for more than the server has waits for 10 s.
    patient = {"ALEXMRI_MAX_BATCH_SIZE": "200", "ALEXMRI_MAX_BATCH_DELAY_MS": "10000"}
    with serving(trained, ALEXMRI_WORKERS="1", **patient) as server, ExitStack() as stack:
        server.wait_until_ready()
        room = json.loads(server.ask("/info")[1])["limits"]["images_in_flight"]
        kept = stack.enter_context(server.connect(ping))
        assert received(kept)[0] == 200
        crowd = [stack.enter_context(server.connect(raw)) for _ in range(room)]
        full = f"alexmri_queued_requests {room}.0".encode()
        deadline = time.monotonic() + PATIENCE
        while full not in server.ask("/metrics")[1]:
            assert time.monotonic() < deadline, "the queue did not fill"
        fresh = stack.enter_context(server.connect())
        for connection, asked in ((fresh, raw), (kept, raw), (kept, named)):
            connection.sendall(asked)
            status, content = received(connection)
            assert (status, json.loads(content)["error"]["code"]) == (429, "too_many_requests")
        kept.sendall(ping)
        assert received(kept)[0] == 200
        assert {received(connection)[0] for connection in crowd} == {200}
        kept.sendall(raw)
        assert received(kept)[0] == 200
        assert b'alexmri_requests_total{status="429"} 3.0' in server.ask("/metrics")[1]
