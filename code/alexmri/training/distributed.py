"""Workers that train one model together, on torchrun and DistributedDataParallel.

Each computes a contiguous part of every batch. The first one prints, writes and reports for all.
"""

import datetime
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alexmri.contract.failure import LostPeer
from alexmri.contract.launcher import say_ready
from alexmri.contract.signals import StopRequest
from alexmri.errors import UserError

# A connection that breaks is noticed at once. This is for a machine that vanishes without a word,
# and longer than the others may wait while the first worker audits a large data set.
TIMEOUT = datetime.timedelta(hours=2)
# What gloo, NCCL and the store say where another process is gone.
LOST_PEER_WORDS = (
    *("onnection closed by peer", "onnection reset", "onnection refused", "roken pipe"),
    *("imed out", "ocket closed", "onnection was likely closed", "remote process exited"),
)


class Workers:
    """The workers of a training, seen from one of them; alone, it agrees with itself at once."""

    def __init__(
        self, *, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this one prints, writes and reports for all."""
        return self.rank == 0

    def local_slice(self, total: int) -> slice:
        """Return which of `total` rows this worker computes; the first ones get one more."""
        start, end = (-(-total * rank // self.size) for rank in (self.rank, self.rank + 1))
        return slice(start, end)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return `network` so that a backward pass leaves the mean of all workers' gradients.

        Batch norm sees the batches of all workers on GPUs, each its own on CPUs, for which torch
        has no SyncBatchNorm.
        """
        if self.alone:
            return network
        # DDP wants the strides that a weight has, but a GPU's gradient of a weight with one input
        # channel has others, of the same memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        if device.type == "cpu":
            return DistributedDataParallel(network, forward_sync_buffers=False)
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        device_ids = [torch.cuda.current_device()]
        return DistributedDataParallel(network, device_ids=device_ids, forward_sync_buffers=False)

    def broadcast_buffers(self, network: nn.Module) -> None:
        """Give all workers the first one's statistics of batch norms."""
        if not self.alone:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def max(self, *values: int) -> list[int]:
        """Return the largest of each value over the workers; never waits for a GPU."""
        if self.alone:
            return list(values)
        reduced = torch.tensor(values)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return reduced.tolist()

    def agree_to_stop(self, stop: StopRequest) -> bool:
        """Whether any worker was asked to stop, by which signal `stop` then says on all of them."""
        (number,) = self.max(stop.number)
        stop.join(number)
        return bool(number)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of what each worker passes in, which is changed."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """Return (total, ...): the rows of all workers, each of which passes in its local slice."""
        filled = rows.new_zeros((total, *rows.shape[1:]))
        filled[self.local_slice(total)] = rows
        return self.sum(filled)

    def from_first(self, content: bytes) -> bytes:
        """Return what the first worker passes in.

        Not by torch's `broadcast_object_list`, which unpickles, and so runs, what others send.
        """
        if self.alone:
            return content
        size = torch.tensor([len(content)])
        dist.broadcast(size, 0)
        sent = torch.empty(int(size), dtype=torch.uint8)
        if self.is_first and content:
            sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(sent, 0)
        return sent.numpy().tobytes()

    def barrier(self) -> None:
        """Wait until all workers are here."""
        self.max(0)

    def require_same(self, value: Any) -> None:
        """Refuse to train together on other data or with other settings.

        Raises:
            UserError: another worker passes in another `value` (of JSON).
        """
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
        if self.from_first(digest) != digest:
            raise UserError(
                "this host does not have the same images, split alike, and the same settings as the"
                " first one; give all hosts one data set and the same hyperparameters"
            )

    def interrupts(self, stop: StopRequest) -> AbstractContextManager[None]:
        """Let a signal end the block there and then, where no other worker would wait for ever."""
        return stop.interrupts(at=1) if self.alone else nullcontext()


ALONE = Workers()


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[Workers]:
    """Meet the other workers that torchrun's variables in `environment` tell of, for the block.

    Raises:
        LostPeer: for whatever goes wrong because another worker is gone.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        say_ready(environment)
        yield ALONE
        return
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
        say_ready(environment)
        yield Workers(
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            local_rank=local_rank,
            local_size=int(environment.get("LOCAL_WORLD_SIZE", "1")),
        )
        dist.destroy_process_group()
    except Exception as error:
        if is_lost_peer(error):
            raise LostPeer(str(error).splitlines()[0]) from error
        raise


def is_lost_peer(error: Exception) -> bool:
    """Whether `error` says that another process is gone."""
    text = str(error)
    lost = isinstance(error, dist.DistNetworkError | dist.DistStoreError) or (
        isinstance(error, RuntimeError) and any(words in text for words in LOST_PEER_WORDS)
    )
    return lost and "EADDRINUSE" not in text
