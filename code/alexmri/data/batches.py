"""Cut an epoch into batches whose order is a function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


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
