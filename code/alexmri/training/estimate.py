"""Tell how long a training will take, by timing a few steps on a copy of the network.

And, where several workers train, whether they are worth it.
"""

import copy
import time
from contextlib import nullcontext

import torch

from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.settings import Settings
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.optim import AveragedWeights, build_optimizer
from alexmri.training.precision import Twin
from alexmri.training.step import Whole, train_step

WARMUP_STEPS = 1
TIMED_STEPS = 2
# From this share of a step on, sums of gradients are worth a warning.
MUCH = 0.4
# Validation, checkpoints and augmentation, as a share of the steps.
OVERHEAD = 1.1


def estimate_seconds(
    network: AlexNet,
    images: int,
    settings: Settings,
    compute: Compute,
    workers: Workers = ALONE,
) -> tuple[float, float]:
    """Return how long all epochs over `images` will take, in seconds, and what the workers cost.

    The cost is the share of a step (0 to 1) that goes into sums of gradients that no computing
    hides. `network` is left as it is.
    """
    batch = min(settings.batch_size, images)
    each = seconds_per_image(network, batch, settings, compute, workers=workers)
    share = 0.0
    if not workers.alone:
        apart = seconds_per_image(network, batch, settings, compute, workers=workers, apart=True)
        share = max(0.0, 1 - apart / each)
    return each * images * settings.epochs * OVERHEAD, share


def seconds_per_image(
    network: AlexNet,
    batch: int,
    settings: Settings,
    compute: Compute,
    *,
    timed_steps: int = TIMED_STEPS,
    workers: Workers = ALONE,
    apart: bool = False,
) -> float:
    """Return the seconds an image takes in steps on one random batch that stays where it is.

    `network` is left as it is. All `workers` call this; `apart`, they keep their gradients.
    """
    spare = copy.deepcopy(network)
    twin = Twin(spare, compute.dtype, workers)
    whole = None if workers.alone else Whole(batch, batch)
    own = workers.sizes(batch)[workers.rank]
    optimizer = build_optimizer(spare, settings)
    average = AveragedWeights(spare, settings.ema_decay) if settings.ema_decay else None
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
    size, channels = settings.image_size, settings.channels
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.rand(own, channels, size, size, generator=generator).to(compute.device)
    labels_N = torch.zeros(own, dtype=torch.int64, device=compute.device)
    started = time.monotonic()
    for step in range(WARMUP_STEPS + timed_steps):
        if step == WARMUP_STEPS:
            _wait(compute.device)
            started = time.monotonic()
        with twin.apart() if apart else nullcontext():
            train_step(
                twin,
                optimizer,
                scaler,
                images_NCHW,
                labels_N,
                class_weights_K=None,
                label_smoothing=settings.label_smoothing,
                whole=whole,
                workers=workers,
            )
        if average:
            average.update(step)
    _wait(compute.device)
    return (time.monotonic() - started) / (timed_steps * batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
