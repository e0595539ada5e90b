"""Measure what checkpoints cost a training: the same epochs with and without them, in turns.

    python bench/checkpoints.py [--images 2048] [--repeats 5] [--every 5] [--json FILE]

Checkpoints come every few seconds here, and the cost of one is put in relation to the default
interval: `share_at_default_interval` is the share of training time they take there.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data.dataset import Part
from alexmri.files import write_json
from alexmri.model.alexnet import build
from alexmri.model.forward import choose_compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.checkpoint import CheckpointWriter
from alexmri.training.loop import Run
from alexmri.training.provenance import machine_document


def seconds_of_an_epoch(settings: Settings, images: int, folder: Path) -> tuple[float, int, float]:
    """Return the seconds of one epoch with its checkpoints on disk, their number, the stall."""
    generator = np.random.default_rng(0)
    pixels_NCHW = generator.integers(0, 256, (images, 1, 32, 32), dtype=np.uint8)
    labels_N = generator.integers(0, 4, images)
    train, validation = (
        Part(pixels_NCHW[:n], labels_N[:n], None, ("",) * n) for n in (images, settings.batch_size)
    )
    network = build(classes=4, image_size=32, channels=1, dropout=settings.dropout, seed=0)
    compute = choose_compute(settings.precision)
    run = Run(network, train, validation, settings, compute, None)
    resume_check = {"settings": settings.model_dump(mode="json")}
    writer = CheckpointWriter(folder, resume_check, keep=settings.keep_checkpoints)
    began = time.monotonic()
    for _ in run.epochs(StopRequest(), PlainTerminal(), writer):
        pass
    writer.wait()
    return time.monotonic() - began, writer.count, writer.stalled_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--every", type=float, default=5, help="seconds between checkpoints")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cpu_cores())
    compute = choose_compute("auto")
    plain = {"epochs": 1, "augment": "none", "checkpoint_every_seconds": None}
    without = resolve([Layer("bench", plain)]).settings
    with_them = resolve([Layer("bench", plain | {"checkpoint_every_seconds": options.every})])
    interval = resolve([]).settings.checkpoint_every_seconds
    assert interval, "by default there are checkpoints by time"
    costs, stalls = [], []
    with tempfile.TemporaryDirectory(prefix="alexmri-checkpoints-") as folder:
        seconds_of_an_epoch(without, options.images // 4, Path(folder))  # warm-up
        for _ in range(options.repeats):
            bare, _, _ = seconds_of_an_epoch(without, options.images, Path(folder))
            full, count, stalled = seconds_of_an_epoch(
                with_them.settings, options.images, Path(folder)
            )
            assert count, "no checkpoint came: take more --images or a smaller --every"
            costs.append((full - bare) / count)
            stalls.append(stalled / count)
            print(f"{bare:.2f} s without, {full:.2f} s with {count} checkpoints", flush=True)
        size = max(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    figures = {
        "seconds_per_checkpoint": statistics.median(costs),
        "seconds_per_checkpoint_runs": costs,
        "stall_seconds_per_checkpoint": statistics.median(stalls),
        "default_interval_seconds": interval,
        "share_at_default_interval": statistics.median(costs) / interval,
        "checkpoint_bytes": size,
        "machine": machine_document(compute.device, compute.precision),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
