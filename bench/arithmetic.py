"""What a training step costs in arithmetic and memory traffic, and how fast this machine is."""

import statistics
import time
from functools import partial

import torch

from alexmri.model.alexnet import AlexNet, build, summarise
from alexmri.model.forward import Compute
from alexmri.settings import Settings
from alexmri.training.distributed import ALONE
from alexmri.training.loop import train_step
from alexmri.training.state import State
from alexmri.training.step_graph import step_on

GEMM_SIDES = (1024, 2048, 4096)
LIMIT_STEPS = 12


def network_of(settings: Settings, classes: int, compute: Compute) -> AlexNet:
    network = build(
        classes=classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    return network.to(compute.device).to(memory_format=torch.channels_last).train()


def limit(settings: Settings, classes: int, compute: Compute, *, steps: int = LIMIT_STEPS) -> float:
    """Return images per second of forward, backward and optimiser on one batch that stays."""
    state = State(network_of(settings, classes, compute), settings, compute)
    step = partial(
        train_step, state, class_weights_K=None, label_smoothing=settings.label_smoothing
    )
    step_once = step_on(compute.device, step, ALONE)
    batch, device = settings.batch_size, compute.device
    shape = (batch, settings.channels, settings.image_size, settings.image_size)
    pixels_NCHW = torch.randint(256, shape, dtype=torch.uint8).to(device)
    labels_N = torch.zeros(batch, dtype=torch.int64, device=device)
    step_once(pixels_NCHW, labels_N, share=1.0)  # the warm-up
    _wait(device)
    started = time.perf_counter()
    for number in range(1, steps + 1):
        step_once(pixels_NCHW, labels_N, share=1.0)
        if state.average:
            state.average.update(number)
    _wait(device)
    return batch * steps / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations_per_image(settings: Settings, classes: int) -> dict[str, float]:
    """Return the floating-point operations of a training step, a multiply-add being two.

    Forward, gradient of the weights, gradient of the inputs; the first layer needs no gradient of
    its input.
    """
    layers = summarise(
        classes=classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
    )
    adds = [layer.multiply_adds for layer in layers if layer.multiply_adds]
    return {"forward": 2.0 * sum(adds), "step": 6.0 * sum(adds) - 2.0 * adds[0]}


def bytes_per_step(settings: Settings, classes: int, compute: Compute) -> dict[str, float]:
    """Return the bytes that must move per step whatever the batch: weights, gradients, momenta.

    The pass reads the weights twice and writes their gradients, the optimiser reads these and reads
    and writes weights and momenta. In reduced precision the pass works on a copy: gradients are
    turned into float32 before the optimiser, weights are copied after it.
    """
    layers = summarise(
        classes=classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
    )
    weights = sum(layer.parameters for layer in layers)
    width = 4 if compute.precision == "fp32" else 2
    copies = 0 if compute.precision == "fp32" else (2 + 4) + (4 + 2)
    each = 3 * width + copies + 5 * 4
    return {"parameters": float(weights), "bytes_per_step": float(weights * each)}


def best_gemm(compute: Compute, seconds: float = 0.5) -> float:
    """Return the highest rate of a square matrix product in this precision, in operations/s."""
    best = 0.0
    for side in GEMM_SIDES:
        a = torch.randn(side, side, device=compute.device).to(compute.dtype)
        b = torch.randn(side, side, device=compute.device).to(compute.dtype)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            product = a @ b
            if compute.device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - started))
        del product
    return best


def summary(runs: list[float]) -> dict[str, float | list[float]]:
    """Return median and spread (half the interquartile range) of repeated measurements."""
    quartiles = statistics.quantiles(runs, n=4) if len(runs) > 1 else [runs[0]] * 3
    return {
        "median": statistics.median(runs),
        "spread": (quartiles[2] - quartiles[0]) / 2,
        "runs": runs,
    }
