"""What hosts tell each other: real sockets, and a real process where one has to vanish."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from alexmri.contract import control_channel, first_host
from alexmri.contract.control_channel import End, OtherHost
from alexmri.contract.exit_reasons import LOST_A_PEER
from alexmri.contract.first_host import FirstHost
from alexmri.contract.hosts import Hosts
from alexmri.contract.workers import free_port
from alexmri.errors import UserError

PATIENCE = 60
# All of them are this machine.
NAMES = ("localhost", "127.0.0.2", "127.0.0.3")


class Job:
    """A job's hosts, in one process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.said: list[str] = []
        self.first = FirstHost(Hosts(NAMES[0], NAMES), self.port, self.said.append)
        self.others = [self.other(name) for name in NAMES[1:]]

    def other(self, name: str) -> OtherHost:
        return OtherHost(Hosts(name, NAMES), self.port, self.said.append)

    @property
    def all(self) -> list[FirstHost | OtherHost]:
        return [self.first, *self.others]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            for host in self.all:
                host.listen()
            time.sleep(0.01)

    def begin(self) -> "Job":
        for workers, host in enumerate(self.all, start=1):
            host.tell("ready", workers)
        self.wait_until(lambda: all(host.workers for host in self.all))
        return self

    def end(self) -> End:
        """Wait until all know the end; return it, the same for all."""
        self.wait_until(lambda: all(host.end for host in self.all))
        ends = {host.end for host in self.all}
        assert len(ends) == 1
        return next(end for end in ends if end)

    def finish(self) -> None:
        if not self.first.end:
            self.first.tell("failed", 1, "the test is over")
        for other in self.others:
            other.leave()
        self.first.leave()


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.finish()


def test_nobody_begins_before_all_are_ready(job: Job) -> None:
    job.first.tell("ready", 2)
    job.others[0].tell("ready", 2)
    job.wait_until(lambda: len(job.first._ready) == 2)
    job.said.clear()
    job.first._remind_at = 0
    job.wait_until(lambda: bool(job.said))
    assert job.said == [f"waiting for 127.0.0.3 on port {job.port}"]
    assert not any(host.workers for host in job.all)
    job.others[1].tell("ready", 8)
    job.wait_until(lambda: all(host.workers == (2, 2, 8) for host in job.all))
    assert [host.addresses for host in job.all] == [("127.0.0.1", "127.0.0.1")] * 3


def test_nobody_leaves_before_all_are_done(job: Job) -> None:
    job.begin()
    job.others[0].tell("done", 0)
    job.first.tell("done", 0)
    job.others[1].tell("stopping", 1)
    job.wait_until(lambda: job.first.stops == 1)  # what was said before was heard too
    assert not job.first.end
    job.others[1].tell("done", 0)
    assert job.end() == End(0)


def test_the_first_cause_is_everybodys(job: Job) -> None:
    job.begin()
    job.others[0].tell("lost")
    job.others[1].tell("failed", 137, "the training was killed")
    job.wait_until(lambda: job.first.end is not None)
    job.first.tell("failed", 1, "something later")
    assert job.end() == End(137, "127.0.0.3: the training was killed")


def test_who_lost_the_others_is_the_cause_only_where_nobody_says_why(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_host, "GRACE_SECONDS", 0.1)
    job.begin()
    job.others[0].tell("lost")
    end = job.end()
    assert end.code == LOST_A_PEER
    assert end.failure == "a worker on 127.0.0.2 lost the others, and none of them says why"


def test_a_stop_is_everybodys_and_as_urgent_as_the_most_urgent(job: Job) -> None:
    job.begin()
    job.others[0].tell("stopping", 1)
    job.others[1].tell("stopping", 1)  # the same stop, a little later: no second one
    job.wait_until(lambda: all(host.stops == 1 for host in job.all))
    job.others[1].tell("stopping", 2)
    job.wait_until(lambda: all(host.stops == 2 for host in job.all))
    for host in job.all:
        host.tell("done", 0)
    assert job.end() == End(0)


def test_a_stop_before_the_begin_ends_it_for_all(job: Job) -> None:
    for other in job.others:
        other.tell("ready", 2)
    job.wait_until(lambda: len(job.first._wires) == 2)
    job.others[0].tell("stopping", 1)
    assert job.end() == End(0)
    nobody_calls = OtherHost(Hosts("other", ("localhost", "other")), free_port(), print)
    nobody_calls.tell("stopping", 1)
    assert nobody_calls.end == End(0)


def test_what_is_lost_after_the_first_host_is_done_is_no_failure(job: Job) -> None:
    job.begin()
    job.others[0].tell("lost")
    job.first.tell("done", 0)
    job.others[1].leave()
    job.others.pop()
    assert job.end() == End(0)


# A host that is ready and then waits for its end.
HOST = """
import sys, time
from alexmri.contract.control_channel import OtherHost
from alexmri.contract.hosts import Hosts
host = OtherHost(Hosts(sys.argv[1], ("localhost", sys.argv[1])), int(sys.argv[2]), print)
host.tell("ready", 2)
while not host.end:
    host.listen()
    time.sleep(0.05)
"""


def test_a_host_that_vanishes_is_named_within_seconds() -> None:
    port = free_port()
    first = FirstHost(Hosts("localhost", ("localhost", "algo-2")), port, print)
    first.tell("ready", 2)
    with subprocess.Popen([sys.executable, "-c", HOST, "algo-2", str(port)]) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not first.workers:
                assert time.monotonic() < deadline
                first.listen()
                time.sleep(0.01)
        finally:
            process.kill()
    killed = time.monotonic()
    while not first.end:
        assert time.monotonic() - killed < 10
        first.listen()
        time.sleep(0.01)
    assert first.end == End(LOST_A_PEER, "algo-2 left without a word; its log may have the cause")
    first.leave()


def test_a_first_host_that_vanishes_is_named_where_there_is_no_own_cause(job: Job) -> None:
    job.begin()
    job.others[0].tell("failed", 3, "it began here")
    job.first._server.close()
    for wire in job.first._wires.values():
        wire.close()
    waiting, failing = job.others[1], job.others[0]
    while not (waiting.end and failing.end):
        waiting.listen()
        failing.listen()
    assert waiting.end == End(
        LOST_A_PEER, "localhost left without a word; its log may have the cause"
    )
    assert failing.end == End(3, "127.0.0.2: it began here")


def test_who_comes_after_a_failure_still_hears_it(job: Job) -> None:
    late = job.others.pop()
    job.first.tell("failed", 2, "the setting is odd")
    job.end()
    job.others.append(late)
    late.tell("ready", 2)
    assert job.end() == End(2, "localhost: the setting is odd")


def test_hosts_that_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (control_channel, first_host):
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
        monkeypatch.setattr(module, "LATECOMER_SECONDS", 0.1)
        monkeypatch.setattr(module, "RETRY_SECONDS", 0.1)
    job = Job()
    job.others.clear()
    job.first.tell("ready", 2)
    end = job.end()
    job.finish()
    assert end.code == 2
    assert end.failure
    assert end.failure.startswith("127.0.0.2, 127.0.0.3 did not call localhost on port")
    said: list[str] = []
    alone = OtherHost(Hosts("algo-2", ("host.invalid", "algo-2")), 7, said.append)
    while not alone.end:
        alone.listen()
    assert alone.end.failure
    assert alone.end.failure.startswith("the first host host.invalid does not answer on port 7")
    assert said
    assert said[0].startswith("waiting for the first host host.invalid on port 7")


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b'["host", "algo-9"]\n', b"[]\n", b""]
)
def test_strangers_do_no_harm(job: Job, words: bytes) -> None:
    with socket.create_connection(("localhost", job.port)) as stranger:
        stranger.sendall(words)
        job.begin()
        job.first.listen()
    for host in job.all:
        host.tell("done", 0)
    assert job.end() == End(0)


def test_two_hosts_of_one_name_are_a_mistake(job: Job) -> None:
    job.others.append(job.other(NAMES[1]))
    job.wait_until(lambda: job.first.end is not None)
    assert job.first.end
    assert (job.first.end.failure or "").startswith("two hosts say that they are 127.0.0.2")


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen to the other hosts on port {port}"):
            FirstHost(Hosts(NAMES[0], NAMES), port, print)
