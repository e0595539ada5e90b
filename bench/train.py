"""Measure how fast this machine trains: the whole epoch beside the bare arithmetic of its steps.

    python bench/train.py [--images 2048] [--repeats 5] [--json FILE]

`limit` is forward, backward and optimiser on one random batch that never changes; `engine` is a
whole epoch of the default recipe with order, augmentation and metrics. Both in images per second,
medians over interleaved repeats on the same machine, after one warm-up each.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data.augment import Augmenter
from alexmri.data.dataset import Part
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute, choose_compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.estimate import seconds_per_image
from alexmri.training.loop import Run
from alexmri.training.provenance import machine_document


def random_part(images: int, settings: Settings) -> Part:
    generator = np.random.default_rng(0)
    shape = (images, settings.channels, settings.image_size, settings.image_size)
    pixels_NCHW = generator.integers(0, 256, shape, dtype=np.uint8)
    return Part(pixels_NCHW, generator.integers(0, 4, images), None, ("",) * images)


def measure_epochs(images: int, repeats: int, settings: Settings, compute: Compute) -> list[float]:
    """Return images per second of each of `repeats` epochs, validation not counted."""
    network = build(
        classes=4,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        seed=0,
    )
    validation = random_part(settings.batch_size, settings)
    run = Run(
        network, random_part(images, settings), validation, settings, compute, Augmenter(settings)
    )
    return [row["images_per_second"] for row in run.epochs(StopRequest(), PlainTerminal())][
        -repeats:
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cpu_cores())
    settings = resolve([Layer("bench", {"epochs": 2})]).settings
    compute = choose_compute(settings.precision)
    network = build(classes=4, image_size=32, channels=1, dropout=settings.dropout, seed=0)
    limits: list[float] = []
    engines: list[float] = []
    for repeat in range(options.repeats):
        started = time.monotonic()
        limits.append(
            1
            / seconds_per_image(network.to(compute.device), settings.batch_size, settings, compute)
        )
        engines += measure_epochs(options.images, 1, settings, compute)
        print(
            f"repeat {repeat + 1}/{options.repeats}: limit {limits[-1]:.0f}, engine"
            f" {engines[-1]:.0f} images/s ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    limit, engine = statistics.median(limits), statistics.median(engines)
    document = {
        "limit": limit,
        "engine": engine,
        "engine_over_limit": engine / limit,
        "limit_runs": limits,
        "engine_runs": engines,
        "images": options.images,
        "settings": settings.model_dump(mode="json"),
        "machine": machine_document(compute.device, compute.precision),
    }
    print(f"limit {limit:.0f} images/s, engine {engine:.0f}: {engine / limit:.2f} of the limit")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
