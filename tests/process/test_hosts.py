"""container/train on two hosts: two trees, two addresses of this machine, the real processes."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from .conftest import PATIENCE, Tree, grow_tree
from .test_process_one import wait_for_line, worker_of, write_config

HOSTS = ("127.0.0.1", "127.0.0.2")
MANY = ("--epochs", "300")
# What is promised when a worker or a host dies.
DEATH_SECONDS = 15
Processes: TypeAlias = "list[subprocess.Popen[str]]"
Start: TypeAlias = Callable[..., Processes]


@pytest.fixture
def hosts(tmp_path: Path) -> list[Tree]:
    """The trees of two hosts with the same data."""
    # Below the ports that the kernel hands out; an even one, since the next one is taken too.
    ports = {"SM_MASTER_PORT": str(random.randrange(20_000, 32_000, 2))}  # noqa: S311
    trees = [grow_tree(tmp_path / name / "ml") for name in ("first", "second")]
    for name, tree in zip(HOSTS, trees, strict=True):
        tree.extra = ports
        write_config(tree, "resourceconfig.json", {"current_host": name, "hosts": HOSTS})
    return trees


@pytest.fixture
def start(hosts: list[Tree]) -> Iterator[Start]:
    """Return a function that starts the hosts with arguments, the second one first."""
    started: Processes = []

    def start_both(*arguments: str) -> Processes:
        started.extend(tree.start("train", *arguments) for tree in reversed(hosts))
        return started[::-1]

    yield start_both
    for process in started:
        with process:  # closes what it printed to, and waits for its end
            process.kill()


def ends(processes: Processes) -> tuple[list[int], str]:
    """Return the exit codes, and all that was printed."""
    printed = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(printed)


def test_two_hosts_train_one_model(hosts: list[Tree], start: Start) -> None:
    codes, printed = ends(start())
    assert codes == [0, 0], printed
    first, second = (tree.root for tree in hosts)
    assert (first / "model" / "model.json").is_file()
    assert (first / "output" / "data" / "report.html").is_file()
    for name in ("model", "output", "checkpoints"):
        assert not [path for path in (second / name).rglob("*") if path.is_file()]
    assert printed.count("epoch=1; train_loss") == 1
    assert "127.0.0.2 is host 1 of 127.0.0.1, 127.0.0.2; workers: (1, 1)" in printed


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_both_hosts_with_the_cause(
    hosts: list[Tree], start: Start, victim: int
) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    os.kill(worker_of(processes[victim]), signal.SIGKILL)
    killed = time.monotonic()
    codes, printed = ends(processes)
    assert time.monotonic() - killed < DEATH_SECONDS
    assert codes == [137, 137], printed
    for tree in hosts:
        text = f"{HOSTS[victim]}: the training was killed by signal 9 (SIGKILL)"
        assert tree.failure.startswith(text), printed


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_vanishes_ends_the_other(hosts: list[Tree], start: Start, victim: int) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    processes[victim].kill()
    killed = time.monotonic()
    codes, printed = ends(processes)
    assert time.monotonic() - killed < DEATH_SECONDS
    assert codes[1 - victim] not in (0, -9), printed
    failure = hosts[1 - victim].failure
    assert failure == f"{HOSTS[victim]} left without a word; its log may have the cause", printed


def test_a_stop_of_one_host_stops_both_and_saves_once(hosts: list[Tree], start: Start) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    processes[1].send_signal(signal.SIGTERM)
    codes, printed = ends(processes)
    assert codes == [0, 0], printed
    saved = [len(list((tree.root / "checkpoints").glob("step-*.json"))) for tree in hosts]
    assert saved == [1, 0]
    assert (hosts[0].root / "model" / "model.json").is_file()
    assert not any((tree.root / "output" / "failure").exists() for tree in hosts)
    assert "hurrying" not in printed


def test_a_mistake_on_one_host_is_told_on_both(hosts: list[Tree], start: Start) -> None:
    write_config(hosts[1], "inputdataconfig.json", {"training": {"TrainingInputMode": "Pipe"}})
    codes, printed = ends(start())
    assert codes == [2, 2], printed
    for tree in hosts:
        assert tree.failure.startswith("127.0.0.2: the channel 'training' comes in Pipe mode")


@pytest.mark.parametrize("alone", [0, 1])
def test_a_stop_while_a_host_is_waited_for_ends_well(hosts: list[Tree], alone: int) -> None:
    process = hosts[alone].start("train")
    wait_for_line(process, "waiting for ")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not (hosts[alone].root / "output" / "failure").exists()
