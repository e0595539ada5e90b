"""Choose how training slices are shifted, scaled and rotated."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alexmri.settings import Settings


class Augment(Protocol):
    """Changes a batch of `uint8` images by random draws that are a function of (seed, epoch, row).

    So a draw depends neither on the order of images, nor on threads, nor on where a run resumed.
    """

    def __call__(self, pixels_NCHW: Tensor, epoch: int, rows_N: NDArray[np.int64]) -> Tensor:
        """Return augmented copies, on the device of `pixels_NCHW`; `rows_N` name the images."""


def choose_augment(settings: Settings) -> Augment | None:
    """Return the augmentation that `settings` ask for, or None."""
    if settings.augment == "none":
        return None
    if settings.augment_backend == "albumentations":
        # Importing albumentations costs a second.
        from alexmri.data.augment_albumentations import AlbumentationsAugment

        return AlbumentationsAugment(settings)
    from alexmri.data.augment_batched import BatchedAugment

    return BatchedAugment(settings)
