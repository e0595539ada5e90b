"""container/train on two hosts: two trees, two addresses of this machine, the real processes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from alexmri.contract.failure import LOST_A_PEER

from .conftest import PATIENCE, Tree, grow_tree
from .test_distributed import FIRST_EPOCH, worker_of_rank
from .test_launcher import wait_for_line, write_config

HOSTS = ("127.0.0.1", "127.0.0.2")
MANY = ("--epochs", "300")
# What is promised when a worker or a host dies.
DEATH_SECONDS = 60
Processes: TypeAlias = "list[subprocess.Popen[str]]"
Start: TypeAlias = Callable[..., Processes]
# container/train with less patience for hosts that do not come.
IMPATIENT = """
import sys
from alexmri.contract.signals import hold_signals
hold_signals()
from alexmri.contract import launcher
launcher.JOIN_SECONDS = 20.0
from alexmri.training.platform import main
sys.exit(main())
"""


@pytest.fixture
def hosts(tmp_path: Path) -> list[Tree]:
    """The trees of two hosts with the same data."""
    # Below the ports that the kernel hands out.
    ports = {"ALEXMRI_MASTER_PORT": str(random.randrange(20_000, 32_000))}  # noqa: S311
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
    assert len(re.findall(FIRST_EPOCH, printed, re.MULTILINE)) == 1
    assert "127.0.0.2 is host 1 of 127.0.0.1, 127.0.0.2; workers on this host: 1" in printed


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_named_by_its_host_and_ends_the_other(
    hosts: list[Tree], start: Start, victim: int
) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    os.kill(worker_of_rank(processes[victim], victim), signal.SIGKILL)
    killed = time.monotonic()
    codes, printed = ends(processes)
    assert time.monotonic() - killed < DEATH_SECONDS
    assert codes[victim] == 137, printed
    assert codes[1 - victim] == LOST_A_PEER, printed
    cause = f"rank {victim} on {HOSTS[victim]}: the training was killed by signal 9 (SIGKILL)"
    assert hosts[victim].failure.startswith(cause), printed
    assert hosts[1 - victim].failure.startswith(f"host {HOSTS[victim]} ended"), printed


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_vanishes_ends_the_other(hosts: list[Tree], start: Start, victim: int) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    processes[victim].kill()
    killed = time.monotonic()
    codes, printed = ends(processes)
    assert time.monotonic() - killed < DEATH_SECONDS
    assert codes[1 - victim] == LOST_A_PEER, printed
    assert hosts[1 - victim].failure.startswith(f"host {HOSTS[victim]} ended"), printed


@pytest.mark.parametrize("asked", [0, 1])
def test_a_stop_of_one_host_stops_both_and_saves_once(
    hosts: list[Tree], start: Start, asked: int
) -> None:
    processes = start(*MANY)
    wait_for_line(processes[0], "epoch=1;")
    processes[asked].send_signal(signal.SIGTERM)
    codes, printed = ends(processes)
    assert codes == [0, 0], printed
    saved = [len(list((tree.root / "checkpoints").glob("step-*.json"))) for tree in hosts]
    assert saved == [1, 0]
    assert (hosts[0].root / "model" / "model.json").is_file()
    assert not any((tree.root / "output" / "failure").exists() for tree in hosts)
    assert printed.count("SIGTERM: stopping") == 2, printed
    assert "saving only" not in printed


def test_other_images_on_one_host_end_both(hosts: list[Tree], start: Start) -> None:
    shutil.copyfile(
        *(hosts[1].root / "input/data/training/NonDemented" / f"{n} (1).jpg" for n in (1, 2))
    )
    codes, printed = ends(start())
    assert codes[1] == 2, printed
    assert codes[0] != 0, printed
    assert "does not have the same images" in hosts[1].failure
    assert hosts[0].failure.startswith("host 127.0.0.2 ended")


def test_files_dealt_out_to_hosts_are_refused(hosts: list[Tree], start: Start) -> None:
    channel = {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}
    for tree in hosts:
        write_config(tree, "inputdataconfig.json", {"training": channel})
    codes, printed = ends(start())
    assert codes == [2, 2], printed
    assert "use FullyReplicated" in hosts[0].failure


@pytest.mark.parametrize("alone", [0, 1])
def test_a_stop_while_a_host_is_waited_for_ends_well(hosts: list[Tree], alone: int) -> None:
    process = hosts[alone].start("train")
    wait_for_line(process, f"{HOSTS[alone]} is host")
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert "stopped before the training began" in printed
    assert not (hosts[alone].root / "output" / "failure").exists()


@pytest.mark.parametrize("alone", [0, 1])
def test_a_host_that_never_joins_is_named(hosts: list[Tree], alone: int) -> None:
    process = hosts[alone].spawn(sys.executable, "-c", IMPATIENT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 2, printed
    assert f"{HOSTS[1 - alone]} did not join within" in hosts[alone].failure


def test_a_host_whose_name_does_not_resolve_is_waited_for_and_named(hosts: list[Tree]) -> None:
    names = ["first-host.invalid", "127.0.0.2"]
    write_config(hosts[1], "resourceconfig.json", {"current_host": names[1], "hosts": names})
    process = hosts[1].spawn(sys.executable, "-c", IMPATIENT)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 2, printed
    assert "waiting for the first host first-host.invalid" in printed
    assert "the first host first-host.invalid did not come within" in hosts[1].failure
