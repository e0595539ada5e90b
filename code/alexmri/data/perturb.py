"""Mirror training slices left to right and add noise: what keeps a network from knowing people.

A person is known by the folds of the cortex, fine and lopsided; atrophy is coarse and shows on both
sides. Under strong noise the coarse signal is what is left to learn (docs/LOG.md has the trials).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexmri.data.augment_batched import uniforms
from alexmri.settings import Settings


class Perturb:
    """Changes float images by draws that are a function of (seed, epoch, row), on any device."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, images_NCHW: Tensor, epoch: int, rows_N: NDArray[np.int64]) -> Tensor:
        """Return changed images; `images_NCHW` are -1 to 1, `rows_N` name them."""
        wanted, device = self._settings, images_NCHW.device
        mirrored, strength = uniforms(wanted.seed, epoch, rows_N, stream=4)[:2]
        chosen_N = torch.from_numpy(mirrored < wanted.flip_probability).to(device)
        images_NCHW = torch.where(chosen_N[:, None, None, None], images_NCHW.flip(-1), images_NCHW)
        if wanted.noise_limit:
            deviation_N = torch.from_numpy(strength * wanted.noise_limit).float().to(device)
            noise = _normal(wanted.seed, epoch, rows_N, images_NCHW[0].numel()).to(device)
            images_NCHW += deviation_N[:, None, None, None] * noise.reshape(images_NCHW.shape)
        return images_NCHW


def choose_perturb(settings: Settings) -> Perturb | None:
    """Return what `settings` ask for, or None."""
    return Perturb(settings) if settings.flip_probability or settings.noise_limit else None


def _normal(seed: int, epoch: int, rows_N: NDArray[np.int64], values: int) -> Tensor:
    """Return standard normal draws (N, values); 1 ms for 64 images of 32 x 32."""
    uniform = uniforms(seed, epoch, rows_N, stream=5, draws=values).T
    inside = torch.from_numpy(uniform).clamp_(2.0**-53, 1 - 2.0**-53)
    return torch.special.ndtri(inside).float()
