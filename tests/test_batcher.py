"""The queue before a model: batches, deadlines, refusals, faults; the models are functions."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from alexmri.data.pixels import Pixels
from alexmri.serving.batcher import Batcher, LatencyModel
from alexmri.serving.request_error import RequestError

PATIENCE = 60


def picture(value: int, count: int = 1) -> Pixels:
    return np.full((count, 1, 2, 2), value, dtype=np.uint8)


@dataclass
class Model:
    """Answers with the pictures' own value; waits where it is told to, and notes its batches."""

    batches: list[list[int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    fault: Callable[[list[int]], Exception | None] = lambda batch: None
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self, pixels_NCHW: Pixels) -> NDArray[np.uint8]:
        values = pixels_NCHW[:, 0, 0, 0]
        self.batches.append(values.tolist())
        self.entered.release()
        assert self.gate.wait(PATIENCE)
        if error := self.fault(values.tolist()):
            raise error
        return values


class Bench:
    """A batcher, many clients, and what became of its model thread."""

    def __init__(
        self,
        model: Model,
        *,
        largest: int = 4,
        capacity: int = 8,
        delay_s: float = 0,
        alone_s: float = 0.01,
    ):
        self.model = model
        self.died: list[BaseException] = []
        self.dead = threading.Event()
        self.seen: list[int] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.batcher: Batcher[NDArray[np.uint8]] = Batcher(
            model,
            picture(0),
            LatencyModel({1: alone_s, largest: 2 * alone_s}),
            capacity=capacity,
            delay_s=delay_s,
            on_death=self._note,
            on_batch=self._see,
        )
        self.clients = ThreadPoolExecutor(32)

    def _note(self, error: BaseException) -> None:
        self.died.append(error)
        self.dead.set()

    def _see(self, pictures: int, seconds: float, waits: Sequence[float]) -> None:
        assert len(waits) <= pictures
        self.seen.append(pictures)
        assert self.go_on.wait(PATIENCE)

    def submit(
        self, value: int, count: int = 1, seconds: float = PATIENCE
    ) -> "Future[NDArray[np.uint8]]":
        """Ask in a thread of its own; return when the request is in the queue or refused."""
        before = self.batcher.queued
        deadline = time.monotonic() + seconds
        future = self.clients.submit(self.batcher.submit, picture(value, count), deadline)
        while not future.done() and self.batcher.queued == before:
            time.sleep(0.001)
        return future

    def hold(self) -> "Future[NDArray[np.uint8]]":
        """Have the model compute a first batch, of the picture 0, until its gate opens."""
        deadline = time.monotonic() + PATIENCE
        first = self.clients.submit(self.batcher.submit, picture(0), deadline)
        assert self.model.entered.acquire(timeout=PATIENCE)
        return first


@pytest.fixture
def model() -> Iterator[Model]:
    model = Model()
    yield model
    model.gate.set()


def test_everybody_gets_their_own_answer(model: Model) -> None:
    model.gate.set()
    bench = Bench(model, largest=16, capacity=1000)

    def client(number: int) -> bool:
        deadline = time.monotonic() + PATIENCE
        return all(
            (bench.batcher.submit(picture(value, count), deadline) == value).all()
            for value, count in [((number * 7 + i) % 256, 1 + (number + i) % 3) for i in range(50)]
        )

    assert all(bench.clients.map(client, range(32)))
    assert max(len(batch) for batch in model.batches) <= 16
    # Told of after its answers are out.
    deadline = time.monotonic() + PATIENCE
    while sum(bench.seen) < sum(map(len, model.batches)):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_batch_is_all_that_waits_up_to_the_largest_in_their_order(model: Model) -> None:
    bench = Bench(model)
    answers = [bench.hold(), *(bench.submit(value) for value in range(1, 7))]
    model.gate.set()
    assert [int(answer.result(PATIENCE)[0]) for answer in answers] == list(range(7))
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_request_stays_whole_and_a_large_one_comes_alone(model: Model) -> None:
    bench = Bench(model, capacity=100)
    answers = [bench.hold(), bench.submit(1, 3), bench.submit(2, 2), bench.submit(3, 9)]
    model.gate.set()
    assert [len(answer.result(PATIENCE)) for answer in answers] == [1, 3, 2, 9]
    assert model.batches == [[0], [1] * 3, [2] * 2, [3] * 9]


def test_without_a_delay_one_request_alone_does_not_wait_and_with_one_it_does(
    model: Model,
) -> None:
    model.gate.set()
    bench = Bench(model, largest=2, delay_s=PATIENCE)
    first = bench.submit(1)
    assert not model.batches
    second = bench.submit(2)
    assert [int(first.result(PATIENCE)[0]), int(second.result(PATIENCE)[0])] == [1, 2]
    assert model.batches == [[1, 2]]
    Bench(model).submit(3).result(PATIENCE)
    assert model.batches == [[1, 2], [3]]


def test_a_full_queue_refuses_with_429_and_says_when_to_come_back(model: Model) -> None:
    bench = Bench(model, capacity=4)
    answers = [bench.hold(), *(bench.submit(value) for value in (1, 2, 3))]
    refused = bench.submit(4).exception(PATIENCE)
    assert isinstance(refused, RequestError)
    assert (refused.status, refused.retry_after_s) == (429, 1)
    with pytest.raises(RequestError):
        bench.batcher.require_room()
    model.gate.set()
    assert [int(answer.result(PATIENCE)[0]) for answer in answers] == [0, 1, 2, 3]
    bench.batcher.require_room()


def test_what_cannot_be_answered_in_time_is_refused_at_once(model: Model) -> None:
    bench = Bench(model, largest=4, capacity=10_000)
    first = bench.hold()
    long = bench.submit(1, 4000)
    # 1000 batches of 20 ms come before it.
    refused = bench.submit(2, seconds=15).exception(PATIENCE)
    assert isinstance(refused, RequestError)
    assert (refused.status, refused.code) == (503, "deadline_exceeded")
    assert bench.batcher.queued == 1
    model.gate.set()
    assert len(first.result(PATIENCE)) == 1
    assert len(long.result(PATIENCE)) == 4000


def test_who_has_waited_too_long_is_told_and_not_computed(model: Model) -> None:
    bench = Bench(model)
    first = bench.hold()
    late = bench.submit(1, seconds=0.3).exception(PATIENCE)
    assert isinstance(late, RequestError)
    assert (late.status, late.retry_after_s) == (503, 1)
    model.gate.set()
    first.result(PATIENCE)
    assert int(bench.submit(2).result(PATIENCE)[0]) == 2
    assert model.batches == [[0], [2]]


def test_a_fault_of_a_request_fails_its_batch_alone(model: Model) -> None:
    model.fault = lambda batch: ValueError("seven") if 7 in batch else None
    model.gate.set()
    bench = Bench(model)
    assert isinstance(bench.submit(7).exception(PATIENCE), ValueError)
    assert int(bench.submit(1).result(PATIENCE)[0]) == 1
    assert not bench.died


def test_a_fault_that_stays_ends_the_model_thread_after_everyone_is_answered(model: Model) -> None:
    model.fault = lambda batch: RuntimeError("CUDA error: an illegal memory access")
    model.gate.set()
    bench = Bench(model)
    assert isinstance(bench.submit(1).exception(PATIENCE), RuntimeError)
    assert bench.dead.wait(PATIENCE)
    assert "illegal memory access" in str(bench.died[0])


def test_the_cost_of_a_batch_lies_between_what_was_timed_and_never_falls() -> None:
    costs = LatencyModel({4: 0.004, 1: 0.002, 2: 0.001})
    assert costs.max_batch_size == 4
    assert [round(costs.seconds(n), 4) for n in (0, 1, 2, 3, 4)] == [0, 0.002, 0.002, 0.003, 0.004]
    assert costs.images_within(0.1) == 100
    assert costs.seconds(9) == pytest.approx(0.004 + 0.004 + 0.002)


def test_who_has_an_answer_may_ask_again_at_once(model: Model) -> None:
    """What was answered leaves room before its clients know, however slow the thread is then."""
    model.gate.set()
    bench = Bench(model, capacity=1)
    bench.go_on.clear()
    assert int(bench.submit(1).result(PATIENCE)[0]) == 1
    again = bench.submit(2)
    assert not again.done()
    bench.go_on.set()
    assert int(again.result(PATIENCE)[0]) == 2


# --- who comes back


@pytest.fixture
def open_model() -> Model:
    model = Model()
    model.gate.set()
    return model


def test_clients_who_ask_again_at_once_end_up_in_one_batch(open_model: Model) -> None:
    bench = Bench(open_model, alone_s=10)
    starting = threading.Barrier(4)

    def ask_often(value: int) -> None:
        starting.wait(PATIENCE)
        for _ in range(200):
            bench.batcher.submit(picture(value), time.monotonic() + PATIENCE)

    with ThreadPoolExecutor(4) as clients:
        list(clients.map(ask_often, range(4)))
    # Of 800 questions most are computed together.
    assert [0, 1, 2, 3] in [sorted(batch) for batch in open_model.batches]
    assert len(open_model.batches) < 400


def test_a_lone_client_never_waits_for_company(open_model: Model) -> None:
    bench = Bench(open_model, alone_s=1000)
    for _ in range(3):
        bench.batcher.submit(picture(1), time.monotonic() + 10_000)
    assert open_model.batches == [[1], [1], [1]]
