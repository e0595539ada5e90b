"""Tell how long a training will take, by timing a few steps on a copy of the network."""

import copy
import time

import torch

from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.settings import Settings
from alexmri.training.optim import AveragedWeights, build_optimizer
from alexmri.training.step import train_step

WARMUP_STEPS = 1
TIMED_STEPS = 2
# Validation, checkpoints and augmentation, as a share of the steps.
OVERHEAD = 1.1


def estimate_seconds(network: AlexNet, images: int, settings: Settings, compute: Compute) -> float:
    """Return the seconds all epochs over `images` will take; `network` is left as it is."""
    batch = min(settings.batch_size, images)
    return (
        seconds_per_image(network, batch, settings, compute) * images * settings.epochs * OVERHEAD
    )


def seconds_per_image(network: AlexNet, batch: int, settings: Settings, compute: Compute) -> float:
    """Return the seconds an image takes in a batch of `batch`; `network` is left as it is."""
    twin = copy.deepcopy(network)
    optimizer = build_optimizer(twin, settings)
    average = AveragedWeights(twin, settings.ema_decay) if settings.ema_decay else None
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    size, channels = settings.image_size, settings.channels
    images_NCHW = torch.zeros(batch, channels, size, size, device=compute.device)
    labels_N = torch.zeros(batch, dtype=torch.int64, device=compute.device)
    started = time.monotonic()
    for step in range(WARMUP_STEPS + TIMED_STEPS):
        if step == WARMUP_STEPS:
            _wait(compute.device)
            started = time.monotonic()
        train_step(
            twin,
            optimizer,
            scaler,
            images_NCHW,
            labels_N,
            compute=compute,
            class_weights_K=None,
            label_smoothing=settings.label_smoothing,
        )
        if average:
            average.update(step)
    _wait(compute.device)
    return (time.monotonic() - started) / (TIMED_STEPS * batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
