"""Shift, scale and rotate training slices, a whole batch at once on the device they are on.

The transform is albumentations' ShiftScaleRotate (its Affine): scale and rotate about the centre,
then shift by whole pixels, bilinear with a black border. Given the same parameters no pixel differs
by more than one gray value from what albumentations returns; the draws themselves are other ones.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
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
    return BatchedAugment(settings)


Floats = NDArray[np.float64]
# SplitMix64 (Steele, Lea and Flood 2014): the output for counter c is mix(key + c * GAMMA).
GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
DRAWS = 6


@dataclass(frozen=True, slots=True)
class Placement:
    """How each of N images is moved: shift in pixels, scale as a factor, rotation in degrees."""

    shift_x: Floats
    shift_y: Floats
    scale_x: Floats
    scale_y: Floats
    degrees: Floats


class BatchedAugment:
    """Moves a random share of the images of a batch; see alexmri.data.augment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, pixels_NCHW: Tensor, epoch: int, rows_N: NDArray[np.int64]) -> Tensor:
        """Return augmented copies; see alexmri.data.augment."""
        height, width = pixels_NCHW.shape[-2:]
        chosen_N, placement = self.draw(epoch, rows_N, height, width)
        augmented = pixels_NCHW.clone()
        if len(chosen_N):
            chosen = torch.from_numpy(chosen_N).to(pixels_NCHW.device, non_blocking=True)
            augmented[chosen] = warp(pixels_NCHW[chosen], placement)
        return augmented

    def draw(
        self, epoch: int, rows_N: NDArray[np.int64], height: int, width: int
    ) -> tuple[NDArray[np.int64], Placement]:
        """Return which images of a batch are moved, and how."""
        wanted = self._settings
        uniform = uniforms(wanted.seed, epoch, rows_N)
        chosen = np.flatnonzero(uniform[0] < wanted.augment_probability)
        x, y, wide, high, turn = 2 * uniform[1:, chosen] - 1
        return chosen, Placement(
            # Whole pixels, as albumentations has it: at 32 pixels a limit of 0.03 moves nothing.
            shift_x=np.trunc(x * wanted.shift_limit * width),
            shift_y=np.trunc(y * wanted.shift_limit * height),
            scale_x=1 + wide * wanted.scale_limit,
            scale_y=1 + high * wanted.scale_limit,
            degrees=turn * wanted.rotate_limit,
        )


def uniforms(seed: int, epoch: int, rows_N: NDArray[np.int64]) -> Floats:
    """Return draws (DRAWS, N) in [0, 1), each a function of (seed, epoch, row, its number).

    A generator per image costs 15 microseconds; this costs 15 for a batch.
    """
    key = np.random.SeedSequence((seed, epoch, 3)).generate_state(1, np.uint64)
    counters = rows_N.astype(np.uint64) * np.uint64(DRAWS)
    state = key + GAMMA * (counters + np.arange(1, DRAWS + 1, dtype=np.uint64)[:, None])
    state = (state ^ (state >> np.uint64(30))) * MIXERS[0]
    state = (state ^ (state >> np.uint64(27))) * MIXERS[1]
    state ^= state >> np.uint64(31)
    draws: Floats = (state >> np.uint64(11)) * 2.0**-53
    return draws


def warp(pixels_NCHW: Tensor, placement: Placement) -> Tensor:
    """Return `uint8` images moved by `placement`; what comes from outside is black."""
    height, width = pixels_NCHW.shape[-2:]
    to_source = _source_of(placement, height, width).astype(np.float32)
    columns_N, rows_N, offset_N = torch.from_numpy(to_source).to(
        pixels_NCHW.device, non_blocking=True
    )
    x = torch.arange(width, dtype=torch.float32, device=pixels_NCHW.device)[:, None]
    y = torch.arange(height, dtype=torch.float32, device=pixels_NCHW.device)[:, None]
    along_x = x * columns_N[:, None]
    along_y = torch.addcmul(offset_N[:, None], y, rows_N[:, None])
    grid_NHW2 = along_y[:, :, None] + along_x[:, None]
    moved = F.grid_sample(
        pixels_NCHW.float(), grid_NHW2, "bilinear", padding_mode="zeros", align_corners=True
    )
    return moved.round_().to(torch.uint8)


def _source_of(placement: Placement, height: int, width: int) -> Floats:
    """Return (3, N, 2): how the source point moves per column, per row, and where (0, 0) lies.

    Points are (x, y) as grid_sample has them: -1 and 1 are the centres of the outermost pixels.
    """
    angle = np.deg2rad(placement.degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    # Backwards: undo the shift, turn back about the centre, then undo the scale.
    per_column = np.stack([cos / placement.scale_x, sin / placement.scale_y], axis=1)
    per_row = np.stack([-sin / placement.scale_x, cos / placement.scale_y], axis=1)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    start_x, start_y = -centre_x - placement.shift_x, -centre_y - placement.shift_y
    origin = per_column * start_x[:, None] + per_row * start_y[:, None]
    half = np.array([centre_x, centre_y])
    result: Floats = np.stack([per_column, per_row, origin]) / half
    return result
