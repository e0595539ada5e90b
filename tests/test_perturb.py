"""Mirrored and noisy slices: functions of (seed, epoch, row), with shares and sizes as asked."""

import numpy as np
import pytest
import torch
from torch import Tensor

from alexmri.data.perturb import Perturb, choose_perturb
from alexmri.settings import Layer, resolve

RAMP = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)


def perturb_of(**values: object) -> Perturb:
    perturb = choose_perturb(resolve([Layer("t", {"seed": 5, **values})]).settings)
    assert perturb is not None
    return perturb


def ramps(count: int) -> Tensor:
    return RAMP.repeat(count, 1, 1, 1)


def test_draws_are_a_function_of_seed_epoch_and_row() -> None:
    values = {"flip_probability": 0.5, "noise_limit": 0.6}
    whole = perturb_of(**values)(ramps(8), 3, np.arange(8))
    assert torch.equal(perturb_of(**values)(ramps(2), 3, np.array([5, 2])), whole[[5, 2]])
    assert not torch.equal(perturb_of(**values)(ramps(8), 4, np.arange(8)), whole)
    assert not torch.equal(perturb_of(**values, seed=6)(ramps(8), 3, np.arange(8)), whole)


def test_the_share_asked_for_is_mirrored_and_the_rest_is_as_it_was() -> None:
    seen = perturb_of(flip_probability=0.3)(ramps(2000), 1, np.arange(2000))
    mirrored = (seen == RAMP.flip(-1)).all(dim=3).all(dim=2).squeeze(1)
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(seen[~mirrored], ramps(int((~mirrored).sum())))


def test_noise_is_normal_and_its_strength_uniform_up_to_the_limit() -> None:
    noise = perturb_of(noise_limit=0.8)(ramps(2000), 1, np.arange(2000)) - RAMP
    deviation = noise.flatten(1).std(dim=1)
    assert deviation.max() < 0.9
    assert np.quantile(deviation, [0.25, 0.5, 0.75]) == pytest.approx([0.2, 0.4, 0.6], abs=0.04)
    scaled = (noise.flatten(1) / deviation[:, None]).flatten()
    assert scaled.mean() == pytest.approx(0, abs=0.01)
    assert (scaled.abs() < 1).float().mean() == pytest.approx(0.683, abs=0.01)


def test_neither_is_done_unless_asked_for() -> None:
    assert choose_perturb(resolve([Layer("t", {})]).settings) is None
