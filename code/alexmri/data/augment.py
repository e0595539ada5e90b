"""Shift, scale and rotate training slices by albumentations, one random draw per image.

The draw is a function of (seed, epoch, index): it does not depend on the order of images, on the
number of threads, or on where a run was resumed.
"""

import os
import random
from collections.abc import Sequence

import numpy as np

from alexmri.data.pixels import Pixels
from alexmri.settings import Settings

# The last MIT release asks a package index for news at every import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations  # noqa: E402
import cv2  # noqa: E402

# Pictures are small and batches come one at a time: OpenCV's own threads only get in the way.
cv2.setNumThreads(0)


class Augmenter:
    """albumentations' ShiftScaleRotate with a black border, seeded per image."""

    def __init__(self, settings: Settings) -> None:
        shift, scale, rotate = settings.shift_limit, settings.scale_limit, settings.rotate_limit
        # ShiftScaleRotate warns that it is deprecated; this is the Affine it is made of.
        self._compose = albumentations.Compose(
            [
                albumentations.Affine(
                    translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
                    scale=(1 - scale, 1 + scale),
                    rotate=(-rotate, rotate),
                    shear=(0, 0),
                    interpolation=cv2.INTER_LINEAR,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                    keep_ratio=False,
                    p=settings.augment_probability,
                )
            ]
        )
        self._seed = settings.seed

    def __call__(self, pixels_NCHW: Pixels, epoch: int, indices: Sequence[int]) -> Pixels:
        """Return augmented copies of `uint8` images; `indices` are rows of the train set."""
        augmented_NCHW = np.empty_like(pixels_NCHW)
        for i, index in enumerate(indices):
            sequence = np.random.SeedSequence((self._seed, epoch, index))
            generator = np.random.Generator(np.random.Philox(sequence))
            # Compose(seed=…) would give every transform the same stream, and workers too:
            # one shared pair of generators per image does neither.
            self._compose.set_random_state(
                generator,
                random.Random(int(generator.integers(2**63))),  # noqa: S311
            )
            image_HWC = np.ascontiguousarray(pixels_NCHW[i].transpose(1, 2, 0))
            augmented_NCHW[i] = self._compose(image=image_HWC)["image"].transpose(2, 0, 1)
        return augmented_NCHW
