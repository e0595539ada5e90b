"""Several processes that train one model together: who they are, and what they agree on."""

import datetime
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from alexmri.contract.exit_reasons import LostPeer
from alexmri.contract.signals import Stopped, StopRequest

# A closed connection is noticed at once; this is for a machine that vanishes without a word.
PATIENCE = datetime.timedelta(minutes=5)
# Hosts start minutes apart.
ARRIVAL = datetime.timedelta(minutes=15)
POLL_SECONDS = 0.05
# How long the first worker, which holds the store, waits for the others to leave.
PARTING_SECONDS = 5.0
# Keys of the store, in which torch has keys too.
STOPPED, LEFT = "alexmri/stopped", "alexmri/left"
# What gloo, NCCL and the store say where another process is gone.
LOST = (
    *("onnection closed by peer", "onnection reset", "onnection refused", "roken pipe"),
    *("imed out", "ocket closed", "onnection was likely closed", "remote process exited"),
)


class Workers:
    """The workers of a training, seen from one of them; alone, it agrees with itself at once.

    Each computes a contiguous part of every batch. What they wait for while nothing is computed
    (decoding, the report) is told through a store, in turns short enough for signals to be heard.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        store: Any = None,
        group: Any = None,
    ) -> None:
        self.rank, self.size = rank, size
        self._group = group
        self.local_rank, self.local_size = local_rank, local_size
        self._store = store
        # Which host this is, and, where there are several, the first worker of each as workers of
        # their own.
        self.host = 0
        self.leaders: Workers | None = None

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this one prints, writes and reports for all."""
        return self.rank == 0

    def share(self, total: int, rank: int | None = None) -> slice:
        """Return which of `total` rows a worker computes, this one or `rank`."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.size, total * (rank + 1) // self.size)

    def sizes(self, total: int) -> list[int]:
        """Return how many of `total` rows each worker computes."""
        shares = [self.share(total, rank) for rank in range(self.size)]
        return [share.stop - share.start for share in shares]

    # --- computing together

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of what each worker passes in, which is changed."""
        if not self.alone:
            dist.all_reduce(values, group=self._group)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return (size, ...): what each worker passes in, all of one shape."""
        gathered = values.new_empty((self.size, *values.shape))
        dist.all_gather(list(gathered.unbind()), values.contiguous(), group=self._group)
        return gathered

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """Return (total, ...): the rows of all workers, each of which passes in its share."""
        if self.alone:
            return rows
        sizes = self.sizes(total)
        filled = rows.new_zeros((max(sizes), *rows.shape[1:]))
        filled[: len(rows)] = rows
        gathered = self.gather(filled)
        return torch.cat([theirs[:size] for theirs, size in zip(gathered, sizes, strict=True)])

    def gather_json(self, value: Any) -> list[Any]:
        """Return what each worker passes in, as JSON gives it back: a tuple becomes a list.

        Not by torch's `all_gather_object`: that unpickles, and so runs, what others send.
        """
        if self.alone:
            return [value]
        content = _to_bytes(value)
        sizes = self.gather(torch.tensor([len(content)])).flatten().tolist()
        filled = content.new_zeros(max(sizes))
        filled[: len(content)] = content
        gathered = self.gather(filled)
        return [_from_bytes(row[:size]) for row, size in zip(gathered, sizes, strict=True)]

    def json_from_first(self, value: Any) -> Any:
        """Return what the first worker passes in, as JSON gives it back."""
        if self.alone:
            return value
        content = _to_bytes(value)
        size = self.tensor_from(0, torch.tensor([len(content)]))
        if not self.is_first:
            content = content.new_empty(int(size))
        return _from_bytes(self.tensor_from(0, content))

    def tensors_from_first(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the first worker's tensors, which lie on the CPU; the others pass in None."""
        shapes = [(k, v.shape, str(v.dtype)) for k, v in (tensors or {}).items()]
        received: dict[str, Tensor] = {}
        for name, shape, dtype in self.json_from_first(shapes):
            tensor = (
                tensors[name].contiguous()
                if tensors
                else torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
            )
            received[name] = self.tensor_from(0, tensor)
        return received

    def tensor_from(self, rank: int, values: Tensor) -> Tensor:
        """Return `values` of the worker `rank`; the others pass in what they are written to."""
        dist.broadcast(values, group=self._group, group_src=rank)
        return values

    # --- stopping together

    def stopping(self, stop: StopRequest) -> bool:
        """Whether any worker was asked to stop, by which signal `stop` then says on all of them.

        Signals reach workers at different times; all ask this at the same step, and so stop there.
        """
        if self.alone:
            return bool(stop)
        number = torch.tensor([stop.signal or 0], dtype=torch.int32)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        stop.join(int(number))
        return bool(number)

    def interrupts(self, stop: StopRequest) -> AbstractContextManager[None]:
        """Let a signal end the block there and then, where no other worker would wait for ever."""
        return stop.interrupts(at=1) if self.alone else nullcontext()

    # --- waiting for one another

    def tell(self, key: str) -> None:
        """Let `wait_for` of the same key return, at every worker."""
        if self._store is not None:
            self._store.set(f"alexmri/{key}", b"1")

    def wait_for(self, key: str, stop: StopRequest | None = None) -> None:
        """Return once a worker told `key`.

        Raises:
            Stopped: with `stop`, another worker was stopped before it came to that.
        """
        if self._store is None:
            return
        while not self._store.check([f"alexmri/{key}"]):
            if stop is not None and self._store.check([STOPPED]):
                stop.join(int(self._store.get(STOPPED)))
                raise Stopped
            time.sleep(POLL_SECONDS)

    @contextmanager
    def first_of_host_first(self, what: str, stop: StopRequest) -> Iterator[None]:
        """Let the first worker of each host do the block alone, then the others of the host."""
        done = f"{what}/{self.host}"
        if self.local_rank:
            self.wait_for(done, stop)
        yield
        if not self.local_rank:
            self.tell(done)

    def meet(self, place: str, stop: StopRequest) -> None:
        """Wait until all are here; who was stopped on the way takes the others along.

        Raises:
            Stopped: a worker was stopped before it came here.
        """
        if self._store is not None and self._store.add(f"alexmri/{place}", 1) == self.size:
            self.tell(f"{place}/all")
        self.wait_for(f"{place}/all", stop)

    def tell_stopped(self, stop: StopRequest) -> None:
        if self._store is not None:
            self._store.set(STOPPED, str(int(stop.signal or 0)))

    def leave(self) -> None:
        """Go; the first one is the last, so that nobody takes its end for a failure."""
        if self._store is None:
            return
        deadline = time.monotonic() + PARTING_SECONDS
        left = self._store.add(LEFT, 1)
        while self.is_first and left < self.size and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            left = self._store.add(LEFT, 0)


ALONE = Workers()


@contextmanager
def joined(environment: Mapping[str, str], stop: StopRequest) -> Iterator[Workers]:
    """Meet the other workers that torchrun's variables in `environment` tell of, for the block.

    Raises:
        LostPeer: for whatever goes wrong because another worker is gone.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    try:
        workers = _meet(environment)
        try:
            yield workers
        except Stopped:
            workers.tell_stopped(stop)
            workers.leave()
            raise
        workers.leave()
    except Exception as error:
        if is_lost_peer(error):
            raise LostPeer(str(error).splitlines()[0]) from error
        raise
    dist.destroy_process_group()


def is_lost_peer(error: Exception) -> bool:
    """Whether `error` says that another process is gone."""
    text = str(error)
    lost = isinstance(error, dist.DistNetworkError | dist.DistStoreError) or (
        isinstance(error, RuntimeError) and any(words in text for words in LOST)
    )
    return lost and "EADDRINUSE" not in text


def _to_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value), "utf-8"), dtype=torch.uint8)


def _from_bytes(content: Tensor) -> Any:
    return json.loads(content.numpy().tobytes())


def _meet(environment: Mapping[str, str]) -> Workers:
    local_rank = int(environment["LOCAL_RANK"])
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(local_rank)
    store, rank, size = next(iter(rendezvous("env://", timeout=ARRIVAL)))
    dist.init_process_group(
        # What workers tell each other from memory goes through gloo also where GPUs compute: no
        # answer waits for a GPU then.
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    local_size = int(environment["LOCAL_WORLD_SIZE"])
    workers = Workers(
        rank=rank, size=size, local_rank=local_rank, local_size=local_size, store=store
    )
    # Hosts may have different numbers of workers.
    leaders = [other for other, local in enumerate(workers.gather_json(local_rank)) if not local]
    workers.host = leaders.index(rank - local_rank)
    if len(leaders) > 1:
        group = dist.new_group(leaders, backend="gloo")
        workers.leaders = Workers(rank=workers.host, size=len(leaders), group=group)
    return workers
