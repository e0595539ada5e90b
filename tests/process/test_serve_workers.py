"""container/serve under signals, exits of its processes, other models, and crowds of clients."""

import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alexmri.contract.network import free_port
from alexmri.files import sha256_of, sha256_of_json
from alexmri.serving.worker import READ_LIMIT_S

from .conftest import PATIENCE, REPOSITORY, Tree
from .serving import Server, WatchedServer, post, received, running, watched

PING = b"GET /ping HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def pair(trained: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    """A server of two processes for the tests that leave it as it is."""
    with watched(trained, tmp_path_factory.mktemp("pair")) as server:
        yield server


@pytest.fixture(scope="module")
def lone(trained: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    """A server of one process, whose threads a crowd can take."""
    with watched(trained, tmp_path_factory.mktemp("lone"), ALEXMRI_WORKERS="1") as server:
        yield server


class Clients:
    """Threads that ask one question after another, each on a connection of its own."""

    def __init__(self, server: Server, jpeg: bytes, count: int = 3) -> None:
        self.server, self.jpeg = server, jpeg
        # For each client its answers in order: the status, or how the connection ended.
        self.seen: list[list[int | str]] = [[] for _ in range(count)]
        self.versions: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seen,)) for seen in self.seen]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        self.wait_for_more(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int) -> None:
        """Wait until every client has got `count` answers more."""
        wanted = [len(seen) + count for seen in self.seen]
        deadline = time.monotonic() + PATIENCE
        while any(len(seen) < least for seen, least in zip(self.seen, wanted, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def flat(self) -> list[int | str]:
        return [answer for seen in self.seen for answer in seen]

    def _ask(self, seen: list[int | str]) -> None:
        while not self._stop.is_set():
            try:
                if len(seen) % 2:
                    seen.append(self.server.ask("/ping")[0])
                else:
                    status, body = self.server.ask("/invocations", self.jpeg, "image/jpeg")
                    seen.append(status)
                    if status == 200:
                        self.versions.add(json.loads(body)["model_version"])
            except (OSError, http.client.HTTPException) as error:
                seen.append(type(error).__name__)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def timed_ask(server: Server, raw: bytes, timeout: float) -> int:
    with server.connect(raw, timeout) as connection:
        return received(connection)[0]


def test_while_one_process_is_stopped_the_other_answers_new_connections(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with watched(trained, tmp_path) as server, Clients(server, jpeg) as clients:
        stopped = min(server.workers())
        os.kill(stopped, signal.SIGSTOP)
        try:
            server.wait_until(lambda: state_of(stopped) == "T")
            for _ in range(20):
                assert timed_ask(server, PING, 1) == 200
                assert timed_ask(server, post(len(jpeg)) + jpeg, 1) == 200
        finally:
            os.kill(stopped, signal.SIGCONT)
        clients.wait_for_more(10)
        assert set(clients.flat()) == {200}


def test_a_killed_process_costs_only_the_requests_inside_it(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    with watched(trained, tmp_path) as server:
        with Clients(server, slice_file.read_bytes(), 6) as clients:
            os.kill(min(server.workers()), signal.SIGKILL)
            server.wait_until(lambda: server.ready_count() == 3)
            clients.wait_for_more(10)
        for seen in clients.seen:
            lost = [answer for answer in seen if answer != 200]
            # A client has one request in flight, and waits for its end.
            assert len(lost) <= 1
            assert all(isinstance(answer, str) for answer in lost), lost


def test_signals_to_the_first_process_cost_no_request(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    with watched(trained, tmp_path) as server:
        before = server.workers()
        with Clients(server, slice_file.read_bytes()) as clients:
            server.signal(signal.SIGTTIN)
            server.wait_until(lambda: len(server.workers()) == server.ready_count() == 3)
            clients.wait_for_more(10)
            assert set(clients.flat()) == {200}, "SIGTTIN"

            server.signal(signal.SIGTTOU)
            server.wait_until(lambda: len(server.workers()) == 2)
            clients.wait_for_more(10)
            assert set(clients.flat()) == {200}, "SIGTTOU"
            after = server.workers()
            assert len(after & before) == 1

            server.signal(signal.SIGHUP)
            server.wait_until(lambda: server.ready_count() == 5)
            server.wait_until(lambda: len(server.workers()) == 2)
            clients.wait_for_more(10)
            assert set(clients.flat()) == {200}, "SIGHUP"
            renewed = server.workers()
            assert not renewed & after

            for number in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGUSR2):
                server.signal(number)
                clients.wait_for_more(20)
            server.wait_until(lambda: "SIGUSR2 is ignored" in server.printed())
            server.wait_until(lambda: server.workers() == renewed)
            assert set(clients.flat()) == {200}, "SIGUSR1, SIGWINCH or SIGUSR2"
        assert server.printed().count("Starting gunicorn") == 1
        server.signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE) == 0, server.printed()
        assert "Traceback" not in server.printed()


def test_gunicorns_own_variable_is_ignored_with_a_warning(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    options = {"GUNICORN_CMD_ARGS": "--workers=3"}
    with watched(trained, tmp_path, **options) as server:
        assert server.ask("/invocations", slice_file.read_bytes(), "image/jpeg")[0] == 200
        lines = (tmp_path / "stderr").read_text().splitlines()
        told = [line for line in lines if "GUNICORN_CMD_ARGS" in line]
        assert told == ["warning: GUNICORN_CMD_ARGS is ignored"]
        assert len(server.workers()) == 2


@pytest.fixture
def copied(trained: Tree, tmp_path: Path) -> Tree:
    """A tree with a copy of the model, which a test may change."""
    tree = Tree(tmp_path / "ml")
    shutil.copytree(trained.root / "model", tree.root / "model")
    return tree


def overwrite_by_another_model(folder: Path, scratch: Path) -> str:
    """Write the same weights with another version over those in place; return the version."""
    weights = folder / "model.safetensors"
    save_file(load_file(weights), scratch, metadata={"copy": "second"})
    document = json.loads((folder / "model.json").read_text())
    document["files"]["model.safetensors"] = sha256_of(scratch)
    del document["checksum"]
    document["checksum"] = sha256_of_json(document)
    shutil.copyfile(scratch, weights)  # as `cp` does: into the file that is there
    (folder / "model.json").write_text(json.dumps(document))
    return str(document["files"]["model.safetensors"][:12])


def test_a_successor_that_finds_another_model_ends_the_server(
    copied: Tree, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with watched(copied, tmp_path / "log") as server:
        first = json.loads(server.ask("/invocations", jpeg, "image/jpeg")[1])
        with Clients(server, jpeg) as clients:
            other = overwrite_by_another_model(copied.root / "model", tmp_path / "other")
            clients.wait_for_more(10)
            second = json.loads(server.ask("/invocations", jpeg, "image/jpeg")[1])
            assert second["predictions"] == first["predictions"]
            os.kill(min(server.workers()), signal.SIGKILL)
            assert server.process.wait(PATIENCE) not in (0, None)
        assert clients.versions == {first["model_version"]}
        (error,) = (line for line in server.printed().splitlines() if line.startswith("error: "))
        assert f"holds model {other} now" in error
        assert "start the server anew" in error
        assert "Traceback" not in server.printed()


def test_after_sighup_every_process_serves_the_other_model(
    copied: Tree, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    with watched(copied, tmp_path / "log") as server:
        before = server.workers()
        with Clients(server, jpeg) as clients:
            other = overwrite_by_another_model(copied.root / "model", tmp_path / "other")
            server.signal(signal.SIGHUP)
            server.wait_until(lambda: server.ready_count() == 4)
            server.wait_until(lambda: not server.workers() & before)
            # The first of four may be an earlier process's answer; every second is a prediction.
            clients.wait_for_more(4)
            assert len(clients.versions) == 2
            clients.versions.clear()
            clients.wait_for_more(20)
            assert clients.versions == {other}
            # A successor serves what the processes since SIGHUP serve.
            os.kill(min(server.workers()), signal.SIGKILL)
            server.wait_until(lambda: server.ready_count() == 5)
            clients.wait_for_more(10)
        assert clients.versions == {other}


@pytest.mark.parametrize("command", ["container/serve", "alexmri serve"])
@pytest.mark.parametrize("found", ["nothing", "an empty folder", "something else"])
def test_without_a_model_it_ends_at_once_with_one_sentence(
    tmp_path: Path, command: str, found: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemError('torch is imported')")
    (tmp_path / "torch" / "version.py").write_text("__version__, cuda = '2.14.1', None\n")
    model = tmp_path / "ml" / "model"
    if found != "nothing":
        model.mkdir(parents=True)
    if found == "something else":
        (model / "notes.txt").write_text("no model")
    code = f"{tmp_path}:{REPOSITORY / 'code'}"
    tree = Tree(tmp_path / "ml", {"PYTHONPATH": code})
    tree.extra["SAGEMAKER_BIND_TO_PORT"] = port = str(free_port())
    done = run_serve(tree, command, model, port)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(model) in line
    for word in ("gunicorn", "Listening", "http://"):
        assert word not in done.stdout


@pytest.mark.parametrize(
    ("command", "option"),
    [("container/serve", "SAGEMAKER_BIND_TO_PORT"), ("alexmri serve", "--port")],
)
def test_a_port_that_is_taken_is_told_in_one_sentence(
    trained: Tree, command: str, option: str
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104
        port = str(taken.getsockname()[1])
        tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": port})
        done = run_serve(tree, command, trained.root / "model", port)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: port {port} is taken by another program; choose another one with {option}"
    ]
    assert "http://" not in done.stdout


def run_serve(
    tree: Tree, command: str, model: Path, port: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command that cannot serve."""
    if command == "container/serve":
        return tree.run("serve")
    main = [sys.executable, "-c", "from alexmri.cli import main; main()"]
    return subprocess.run(
        [*main, "serve", str(model), "--port", port],
        env=tree.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_signal_to_stop_reaches_a_process_that_has_just_been_forked(
    trained: Tree, tmp_path: Path
) -> None:
    """Until it has handlers of its own it has those of its parent, which do nothing there."""
    (tmp_path / "slow.py").write_text(
        """
import time
from alexmri.serving.gunicorn_config import *
from alexmri.serving import gunicorn_config

def post_fork(server, worker):
    gunicorn_config.post_fork(server, worker)
    time.sleep(2)
"""
    )
    port = free_port()
    tree = Tree(trained.root, {"SAGEMAKER_BIND_TO_PORT": str(port), "ALEXMRI_WORKERS": "2"})
    options = ("--chdir", str(tmp_path), "--config", str(tmp_path / "slow.py"))
    application = f"alexmri.serving.app:serve({str(trained.root / 'model')!r})"
    process = tree.spawn(sys.executable, "-m", "gunicorn", *options, application)
    with running(process, port):
        assert process.stdout
        for _ in range(2):
            while "Booting worker" not in process.stdout.readline():
                pass
        process.send_signal(signal.SIGTERM)
        # gunicorn kills a process that has missed the signal after 25 s.
        printed, _ = process.communicate(timeout=20)
        assert process.returncode == 0, printed
        assert " is ready: " not in printed


def test_late_clients_of_a_stopping_server_are_told_to_come_back(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    jpeg = slice_file.read_bytes()
    head = post(len(jpeg)).replace(b"Host:", b"Expect: 100-continue\r\nHost:")
    with watched(trained, tmp_path) as server, server.connect(head) as held:
        # The request is in flight: a thread asks for its body, and has waited for it meanwhile.
        assert held.recv(1000).startswith(b"HTTP/1.1 100 ")
        held.sendall(jpeg[:-100])
        for _ in range(20):
            assert server.ask("/invocations", jpeg, "image/jpeg")[0] == 200
        server.signal(signal.SIGTERM)
        while (status := server.ask("/ping")[0]) == 200:
            pass
        assert status == 503
        # Until the process that has nothing in flight is gone, and after that.
        server.wait_until(lambda: late_client(server, jpeg) and len(server.workers()) == 1)
        assert all(late_client(server, jpeg) for _ in range(20))
        held.sendall(jpeg[-100:])
        assert received(held)[0] == 200
        assert server.process.wait(PATIENCE) == 0, server.printed()


def late_client(server: Server, jpeg: bytes) -> bool:
    """Check what a client of a stopping server gets."""
    assert server.ask("/ping")[0] == 503
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", "/invocations", jpeg, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert json.loads(answer.read())["error"]["code"] == "draining"
    connection.close()
    return True


def test_clients_that_go_on_asking_do_not_keep_a_server_from_ending(
    trained: Tree, slice_file: Path, tmp_path: Path
) -> None:
    with watched(trained, tmp_path) as server:
        with Clients(server, slice_file.read_bytes(), 4) as clients:
            server.signal(signal.SIGTERM)
            assert server.process.wait(10) == 0, server.printed()
        for seen in clients.seen:
            answers = [answer for answer in seen if isinstance(answer, int)]
            assert seen[: len(answers)] == answers, "a client was reset before the end"
            assert answers == sorted(answers), "a request was answered after the refusals"
            assert set(answers) == {200, 503}


def test_three_hundred_connections_at_once_are_answered(pair: WatchedServer) -> None:
    with ExitStack() as stack:
        began = time.monotonic()
        crowd = [stack.enter_context(pair.connect(PING)) for _ in range(300)]
        assert {received(connection)[0] for connection in crowd} == {200}
        # On an idle machine it is below 1 s.
        assert time.monotonic() - began < 5


def test_silent_connections_do_not_hold_up_ping(pair: WatchedServer) -> None:
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(pair.connect())
        assert pair.ping_in_time() == 200


def test_partial_heads_hold_the_threads_no_longer_than_the_limit(lone: WatchedServer) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(lone.connect(b"P", READ_LIMIT_S + 5)) for _ in range(200)]
        # They have every thread, so this waits for the limit.
        assert timed_ask(lone, PING, READ_LIMIT_S + 5) == 200
        assert all(ended(connection) for connection in crowd)
        assert lone.ping_in_time() == 200


def ended(connection: socket.socket) -> bool:
    """Whether the server ends a connection without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_head_that_dribbles_in_is_cut_off_at_the_limit(lone: WatchedServer) -> None:
    with lone.connect() as connection:
        began = time.monotonic()
        for byte in PING:
            connection.sendall(bytes([byte]))
            if select.select([connection], [], [], 1)[0]:
                break
        assert ended(connection)
        assert READ_LIMIT_S - 0.5 < time.monotonic() - began < READ_LIMIT_S + 5


def test_a_base_address_that_ends_in_a_slash_works(pair: WatchedServer, slice_file: Path) -> None:
    assert pair.ask("//ping")[0] == 200
    jpeg = slice_file.read_bytes()
    status, body = pair.ask("//invocations", jpeg, "image/jpeg")
    assert status == 200, body
