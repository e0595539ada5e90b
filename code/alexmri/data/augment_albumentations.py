"""Shift, scale and rotate training slices by albumentations, one image after the other.

This is the reference `alexmri.data.augment` is tested against.
"""

import os
import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexmri.settings import Settings

# The last MIT release asks a package index for news at every import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations  # noqa: E402
import cv2  # noqa: E402

# Images are small and batches come one at a time: OpenCV's own threads only get in the way.
cv2.setNumThreads(0)


class AlbumentationsAugment:
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

    def __call__(self, pixels_NCHW: Tensor, epoch: int, rows_N: NDArray[np.int64]) -> Tensor:
        """Return augmented copies; see alexmri.data.augment."""
        images_NHWC = pixels_NCHW.permute(0, 2, 3, 1).cpu().contiguous().numpy()
        augmented_NHWC = np.empty_like(images_NHWC)
        for i, row in enumerate(rows_N.tolist()):
            sequence = np.random.SeedSequence((self._seed, epoch, row))
            generator = np.random.Generator(np.random.Philox(sequence))
            # Compose(seed=…) would give every transform the same stream, and workers too:
            # one shared pair of generators per image does neither.
            self._compose.set_random_state(
                generator,
                random.Random(int(generator.integers(2**63))),  # noqa: S311
            )
            augmented_NHWC[i] = self._compose(image=images_NHWC[i])["image"]
        moved = torch.from_numpy(augmented_NHWC).permute(0, 3, 1, 2).contiguous()
        return moved.to(pixels_NCHW.device)
