"""Tell how long a training will take, by timing a few steps on a copy of the network."""

import copy
import time
from functools import partial

import torch

from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.settings import Settings
from alexmri.training.distributed import ALONE
from alexmri.training.loop import train_step
from alexmri.training.state import State
from alexmri.training.step_graph import step_on

WARMUP_STEPS = 1
TIMED_STEPS = 2
# Validation, checkpoints and augmentation, as a share of the steps.
OVERHEAD = 1.1


def estimate_seconds(
    network: AlexNet, images: int, settings: Settings, compute: Compute, *, workers: int = 1
) -> float:
    """Return how long all epochs over `images` will take with so many `workers`, in seconds.

    What the workers need to add up their gradients is not counted. `network` is left as it is.
    """
    batch = max(2, min(settings.batch_size, images) // workers)
    each = seconds_per_image(network, batch, settings, compute)
    return each * images / workers * settings.epochs * OVERHEAD


def seconds_per_image(
    network: AlexNet,
    batch: int,
    settings: Settings,
    compute: Compute,
    *,
    timed_steps: int = TIMED_STEPS,
) -> float:
    """Return the seconds an image takes in steps on one random batch that stays where it is.

    `network` is left as it is.
    """
    state = State(copy.deepcopy(network), settings, compute)
    size, channels = settings.image_size, settings.channels
    generator = torch.Generator().manual_seed(0)
    shape, device = (batch, channels, size, size), compute.device
    pixels_NCHW = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    labels_N = torch.zeros(batch, dtype=torch.int64, device=device)
    smoothing = settings.label_smoothing
    step_once = step_on(
        device, partial(train_step, state, class_weights_K=None, label_smoothing=smoothing), ALONE
    )
    started = time.monotonic()
    for step in range(WARMUP_STEPS + timed_steps):
        if step == WARMUP_STEPS:
            _wait(device)
            started = time.monotonic()
        step_once(pixels_NCHW, labels_N, share=1.0)
        if state.average:
            state.average.update(step)
    _wait(device)
    return (time.monotonic() - started) / (timed_steps * batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
