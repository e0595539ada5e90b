"""How many cores a forward pass takes; the passes are functions, and so is the clock."""

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from alexmri.data.pixels import Pixels
from alexmri.serving.batcher import Costs
from alexmri.serving.cores import LONGEST_REST_S, Cores
from alexmri.serving.states import Board

PICTURE = np.zeros((1, 1, 2, 2), np.uint8)
OWN_S, ALL_S, DISTURBED_S = 0.007, 0.005, 0.1


class Bench:
    """Two processes' board, the cores of the first, and passes that last as long as they are told.

    A pass over all cores takes `all_s`, one with its own `OWN_S`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.all_s = ALL_S
        self.threads = 0
        monkeypatch.setattr("alexmri.serving.cores.time.monotonic", lambda: self.now)
        self.board = Board(2)
        self.cores = Cores(
            self.board, 0, own=1, most=2, set_threads=self._set, costs=Costs({1: OWN_S})
        )

    def _set(self, threads: int) -> None:
        self.threads = threads

    def forward(self, pixels_NCHW: Pixels) -> int:
        self.now += self.all_s if self.threads == 2 else OWN_S
        return self.threads

    def run(self) -> int:
        """Return the threads that one picture was computed with."""
        return self.cores.run(self.forward, PICTURE)

    def run_for(self, seconds: float) -> list[int]:
        until = self.now + seconds
        found = []
        while self.now < until:
            found.append(self.run())
        return found


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_all_cores_are_taken_while_no_other_process_computes(bench: Bench) -> None:
    assert bench.run() == 2
    bench.board.tell_work(1, float("inf"))
    assert bench.run() == 1
    # It has ended, and its clients are about to come back.
    bench.board.tell_work(1, bench.now)
    assert bench.run() == 1
    bench.now += 1
    assert bench.run() == 2


def test_the_others_hear_of_a_pass_also_when_it_fails(bench: Bench) -> None:
    def fail(pixels_NCHW: Pixels) -> None:
        assert not bench.board.rest(1, bench.now)
        raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        bench.cores.run(fail, PICTURE)
    assert not bench.board.rest(1, bench.now - 1)
    assert bench.board.rest(1, bench.now + 1)


def test_passes_over_all_cores_rest_where_they_cost_more_than_they_save(bench: Bench) -> None:
    bench.run_for(10)
    bench.all_s = DISTURBED_S
    passes = bench.run_for(1000)
    # Each rest is twice as long as the last, up to the longest.
    assert passes.count(2) < 8 + 1000 / LONGEST_REST_S
    bench.all_s = ALL_S
    bench.run_for(LONGEST_REST_S + 1)
    assert set(bench.run_for(10)) == {2}


def test_one_slow_pass_at_the_start_is_no_reason_to_rest(bench: Bench) -> None:
    bench.all_s = OWN_S + 2 * OWN_S
    assert bench.run() == 2
    bench.all_s = ALL_S
    assert set(bench.run_for(1)) == {2}


def test_one_slow_pass_among_many_is_no_reason_to_rest(bench: Bench) -> None:
    bench.run_for(1)
    bench.all_s = OWN_S + 9 * OWN_S
    assert bench.run() == 2
    bench.all_s = ALL_S
    assert set(bench.run_for(1)) == {2}


@pytest.fixture
def every() -> Iterator[set[int]]:
    """All cores of the machine, also where this process has only one of them (conftest.py)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    yield os.sched_getaffinity(0)
    os.sched_setaffinity(0, before)


def test_the_model_thread_gets_the_cores_of_its_process(every: set[int]) -> None:
    if len(every) < 2:
        pytest.skip("there is one core")
    found: list[set[int]] = []
    cores = Cores(Board(1), 0, own=1, most=1, set_threads=lambda _: None, costs=Costs({1: OWN_S}))

    def model_thread() -> None:
        # Whoever loads the model may have more cores than the process, or fewer.
        os.sched_setaffinity(0, {min(every)})
        cores.settle(lambda _: found.append(os.sched_getaffinity(0)), PICTURE)
        found.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=model_thread)
    thread.start()
    thread.join()
    assert found == [{min(every)}, every]
