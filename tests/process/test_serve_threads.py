"""Where the threads of container/serve run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexmri.contract.resources import cpu_cores

from .conftest import Tree
from .serving import watched


def cores_of_threads(pid: int) -> set[str]:
    """Return the sets of cores, as Linux writes them, that the threads of a process may use."""
    lines = [
        line
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
    ]
    return {line.split()[1] for line in lines if line.startswith("Cpus_allowed_list:")}


@pytest.fixture
def every_core() -> Iterator[None]:
    """Let this process use every core, as tests that run side by side do not."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        if cpu_cores() < 2 or cpu_cores() != len(os.sched_getaffinity(0)):
            pytest.skip("two processes need two cores of their own to share them")
        yield
    finally:
        os.sched_setaffinity(0, own)


@pytest.mark.usefixtures("every_core")
def test_threads_that_answer_stay_on_the_cores_of_their_process(
    trained: Tree, tmp_path: Path
) -> None:
    with watched(trained, tmp_path / "log") as server:
        whole = cores_of_threads(server.process.pid)

        def narrower() -> list[set[str]]:
            server.ask("/ping")
            return [cores_of_threads(pid) - whole for pid in server.workers()]

        server.wait_until(lambda: all(narrower()))
        first, second = narrower()
    assert len(first) == len(second) == 1
    assert first != second
