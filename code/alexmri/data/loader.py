"""Hand out the batches of an epoch, in the order of (seed, epoch), from device or disk."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexmri.contract.resources import free_memory_bytes
from alexmri.data.dataset import Part
from alexmri.data.pixels import Pixels

Indices = NDArray[np.int64]
# How much of the device's free memory images may take.
MAX_MEMORY_SHARE = 0.5
# How many batches are read from disk before they are needed.
AHEAD = 2


class Loader:
    """The images and labels of a split.

    Images that fit are copied to the device once, as `uint8`, and batches are gathered there.
    Others stay memory-mapped, and a thread reads batches ahead. The batches are the same. So many
    processes that are `sharing` a memory each take their part of what may be taken.
    """

    def __init__(self, part: Part, device: torch.device, *, sharing: int = 1) -> None:
        self._device = device
        self._pixels = part.pixels_NCHW
        self._labels_N = torch.from_numpy(part.labels_N).to(device)
        one = part.pixels_NCHW[:1]
        free = _free_bytes(device) / (1 if device.type == "cuda" else sharing)
        self.resident = len(part) * one.nbytes <= MAX_MEMORY_SHARE * free
        if self.resident:
            self._resident_NCHW = torch.from_numpy(part.pixels_NCHW[:]).to(device)

    def batches(self, batches: Sequence[Indices]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `uint8` images and labels of each batch of rows, on the device."""
        if not batches:
            return
        # The whole order goes to the device at once, and no step waits for its part.
        sizes = [len(rows_N) for rows_N in batches]
        order = torch.from_numpy(np.concatenate(batches)).to(self._device)
        steps = torch.split(order, sizes)
        if self.resident:
            for rows in steps:
                yield self._resident_NCHW.index_select(0, rows), self._labels_N[rows]
            return
        with ThreadPoolExecutor(1, "reader") as reader:
            coming: deque[Future[Pixels]] = deque()
            for step, rows in enumerate(steps):
                for rows_N in batches[step + len(coming) : step + AHEAD + 1]:
                    coming.append(reader.submit(self._pixels.__getitem__, rows_N))
                pixels_NCHW = torch.from_numpy(coming.popleft().result())
                yield pixels_NCHW.to(self._device), self._labels_N[rows]


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()


def epoch_order(images: int, *, seed: int, epoch: int) -> Indices:
    """Return the order in which the `images` training images are seen in `epoch`."""
    sequence = np.random.SeedSequence((seed, epoch))
    return np.random.Generator(np.random.Philox(sequence)).permutation(images)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches in an epoch; see `train_batches`."""
    full, rest = divmod(images, batch_size)
    return full + (1 if rest > 1 or not full else 0)


def train_batches(order: Indices, batch_size: int) -> Iterator[Indices]:
    """Yield every index of `order` once, in batches; a last batch of one joins the batch before.

    Batch norm has no statistics for a single image.
    """
    steps = steps_per_epoch(len(order), batch_size)
    for step in range(steps):
        end = len(order) if step == steps - 1 else (step + 1) * batch_size
        yield order[step * batch_size : end]
