"""Check training on the machine at hand, meant for a GPU that is lent for minutes.

    python bench/gpu.py [--data DIR] [--json FILE] [--tiny]

The parts run in this order: the device, the whole default training, the seed's recipe with its 100
epochs, each arithmetic, determinism (a resumed run too), running out of memory, the engine against
its limit, a profile of ten steps, peers, 224 x 224, and a million slices. Each result is printed
and written to FILE at once, so a run that is cut short keeps what it measured. A part that fails is
recorded with one sentence and the next part runs; the exit code is then 1. Without --data synthetic
slices are drawn. `--tiny` checks this program on two CPU cores within minutes.

Needs no network. The parts that train need torch, numpy, Pillow, pydantic, safetensors, scipy,
scikit-learn, matplotlib, jinja2, click and rich; albumentations, torchvision, timm, wandb and
boto3 may be missing. Set PYTHONPATH=code where alexmri is not installed.
"""

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Each part imports the rest by itself, so that a missing package costs one part.
from alexmri.errors import UserError
from alexmri.files import write_json

if TYPE_CHECKING:
    from fixture import Bench

PREFLIGHT = Path(__file__).parents[1] / "container" / "preflight"
TINY_SUBJECTS = {"MildDemented": 3, "NonDemented": 3}
TINY_SLICES = 16
ROUNDS = 3
# Long enough to stop one after its first epoch.
DETERMINISTIC_EPOCHS, TINY_EPOCHS = 20, 10
PEER_EPOCHS = 3
LARGE_STEPS = 200

Figures = dict[str, Any]


@dataclass
class Check:
    """What the parts have in common."""

    chosen: Path | None
    scratch: Path
    tiny: bool

    @cached_property
    def data(self) -> Path:
        if self.chosen:
            return self.chosen
        from alexmri.data.phantom import DEMO_SUBJECTS, SLICES, write_demo_data

        folder = self.scratch / "slices"
        subjects, slices = (TINY_SUBJECTS, TINY_SLICES) if self.tiny else (DEMO_SUBJECTS, SLICES)
        images = write_demo_data(folder, subjects=subjects, slices=slices)
        print(f"no --data: {images} synthetic slices are used", flush=True)
        return folder

    @cached_property
    def bench(self) -> "Bench":
        import torch
        from fixture import bench_of

        from alexmri.contract.resources import ask_for_large_pages, cpu_cores

        ask_for_large_pages()
        torch.set_num_threads(cpu_cores())
        return bench_of(self.data, self.scratch, seed=0)


def device(check: Check) -> Figures:
    """Describe the device, and repeat what container/preflight says about it."""
    import torch

    from alexmri.contract.gpu_facts import kernel_driver

    facts: Figures = {"torch": torch.__version__, "device": "cpu"}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": card.total_memory / 2**30,
        }
    facts |= {"cuda": torch.version.cuda, "driver": kernel_driver()}
    done = subprocess.run([sys.executable, PREFLIGHT], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    facts["preflight"] = {"exit_code": done.returncode, "lines": lines}
    if done.returncode:
        facts["failed"] = f"preflight ended with exit code {done.returncode}: {lines[-1:]}"
    return facts


def training(check: Check) -> Figures:
    """Train with the default recipe to its end."""
    from engine import train_to_the_end

    epochs = ("--epochs", "1") if check.tiny else ()
    return train_to_the_end(check.data, check.scratch, *epochs)


def seeds_recipe(check: Check) -> Figures:
    """Train with the recipe `baseline`, 100 epochs, to its end."""
    from engine import train_to_the_end

    epochs = ("--epochs", "1") if check.tiny else ()
    return train_to_the_end(check.data, check.scratch, "--recipe", "baseline", *epochs)


def out_of_memory(check: Check) -> Figures:
    """Ask for a batch that no GPU holds, then for the ones that the errors name, until one fits."""
    import torch
    from engine import train

    if not torch.cuda.is_available():
        return {"skipped": "there is no GPU"}
    # Images enough for a batch that 80 GiB do not hold at this size.
    size, sentences = 3000, []
    for _ in range(4):
        options = ("--image-size", "512", "--epochs", "1", "--precision", "fp32")
        try:
            train(check.data, check.scratch, *options, "--batch-size", str(size))
            break
        except RuntimeError as error:
            sentences.append(str(error))
            found = re.search(r"batch_size (\d+) is likely to fit", str(error))
            if not found:
                return {"failed": f"no batch size is named: {error}"}
            size = int(found[1])
    else:
        return {"failed": f"no batch size that was named fits: {sentences}"}
    return {"sentences": sentences, "batch_size_that_fits_images": size}


def step_against_limit(check: Check) -> Figures:
    """Measure an epoch of the engine beside as many steps on one batch that stays."""
    import arithmetic
    from engine import epochs_of, make_run

    from alexmri.data.loader import steps_per_epoch

    bench = check.bench
    train = bench.dataset.part("train")
    steps = steps_per_epoch(len(train), bench.settings.batch_size)
    epochs = epochs_of(make_run(bench, train, bench.dataset.part("validation")))
    limits, engines = [], []
    for number in range(ROUNDS + 1):
        limit = arithmetic.limit(bench.settings, bench.classes, bench.compute, steps=steps)
        # The peer's process has just ended, and the first epoch is slow after it.
        next(epochs)
        engine = statistics.median(next(epochs)["images_per_second"] for _ in range(ROUNDS))
        if number:  # the first round is the warm-up
            limits.append(limit)
            engines.append(engine)
    return {
        "limit_images_per_second": statistics.median(limits),
        "engine_images_per_second": statistics.median(engines),
        "engine_over_limit_ratio": statistics.median(map(lambda e, m: e / m, engines, limits)),
        "rounds": {"limit_images_per_second": limits, "engine_images_per_second": engines},
        "batch_size_images": bench.settings.batch_size,
        "precision": bench.compute.precision,
    }


def determinism(check: Check) -> Figures:
    """Train twice with --deterministic and once interrupted and resumed; compare the weights."""
    from engine import train, train_interrupted

    epochs = TINY_EPOCHS if check.tiny else DETERMINISTIC_EPOCHS
    options = ("--deterministic", "--epochs", str(epochs))
    sums = []
    for train_so in (train, train, train_interrupted):
        weights = train_so(check.data, check.scratch, *options) / "model" / "model.safetensors"
        sums.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    first, second, resumed = sums
    figures: Figures = {
        "identical": first == second,
        "resumed_identical": first == resumed,
        "sha256": sums,
        "epochs": epochs,
    }
    if first != second:
        figures["failed"] = "two runs with --deterministic wrote different weights"
    elif first != resumed:
        figures["failed"] = "a run that was stopped and resumed wrote different weights"
    return figures


def profile(check: Check) -> Figures:
    """Profile ten steps; see `gpu_profile`."""
    import gpu_profile

    return gpu_profile.profile(check.bench)


def peers(check: Check) -> Figures:
    """Measure the textbook loop, timm and a loop like airbench's, each beside an engine epoch."""
    from engine import epochs_of, make_run
    from peers.run import speed_of

    from alexmri.contract.resources import cpu_cores

    bench, cores = check.bench, cpu_cores()
    train = bench.dataset.part("train")
    epochs = epochs_of(make_run(bench, train, bench.dataset.part("validation")))
    next(epochs)
    steps = 2 if check.tiny else PEER_EPOCHS * len(train) // bench.settings.batch_size
    figures: Figures = {"could_not_run": {}}
    for peer, script, precision in (
        ("textbook_fp32", "textbook", "fp32"),
        ("textbook_bf16", "textbook", "bf16"),
        ("timm_bf16", "with_timm", "bf16"),
        ("airbench_bf16", "airbench", "bf16"),
    ):
        try:
            speeds = {
                workers: speed_of(bench, script, workers=workers, precision=precision, steps=steps)
                for workers in ((0,) if script == "airbench" or check.tiny else (cores // 2, cores))
            }
        except RuntimeError as error:
            figures["could_not_run"][peer] = str(error)
            continue
        # The peer's process has just ended, and the first epoch is slow after it.
        next(epochs)
        engine = statistics.median(next(epochs)["images_per_second"] for _ in range(ROUNDS))
        figures[peer] = {
            "images_per_second": max(speeds.values()),
            "images_per_second_by_loader_workers": speeds,
            "engine_images_per_second": engine,
            "engine_over_peer_ratio": engine / max(speeds.values()),
        }
    return figures


def precisions(check: Check) -> Figures:
    """Measure an epoch of the engine in each arithmetic."""
    from engine import epochs_of, make_run

    default, figures = check.bench, Figures()
    for precision in ("fp32", "bf16", "fp16"):
        try:
            bench = default.with_settings(precision=precision)
        except UserError as error:  # fp16 on a CPU
            figures[precision] = {"skipped": str(error)}
            continue
        train, validation = bench.dataset.part("train"), bench.dataset.part("validation")
        epochs = epochs_of(make_run(bench, train, validation))
        rows = [next(epochs) for _ in range(2 if check.tiny else 1 + ROUNDS)]
        speeds = [row["images_per_second"] for row in rows[1:]]  # the first is the warm-up
        figures[precision] = {
            "images_per_second": statistics.median(speeds),
            "epochs": len(rows),
            "train_loss": rows[-1]["train_loss"],
        }
    return figures


def at_224_pixels(check: Check) -> Figures:
    """Measure an epoch of noise at 224 x 224 beside as many steps on one batch that stays."""
    import arithmetic
    import numpy as np
    from engine import epochs_of, make_run

    from alexmri.data.dataset import Part

    images = 8 if check.tiny else 4096
    size = 4 if check.tiny else check.bench.settings.batch_size
    bench = check.bench.with_settings(image_size=224, batch_size=size)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, 1, 224, 224), dtype=np.uint8)
    labels = generator.integers(0, bench.classes, images)
    train = Part(pixels, labels, None, ("",) * images)
    epochs = epochs_of(make_run(bench, train, Part(pixels[:8], labels[:8], None, ("",) * 8)))
    speeds = [next(epochs)["images_per_second"] for _ in range(2 if check.tiny else 1 + ROUNDS)]
    limit = arithmetic.limit(bench.settings, bench.classes, bench.compute, steps=images // size)
    return {
        "limit_images_per_second": limit,
        "engine_images_per_second": statistics.median(speeds[1:]),
        "engine_over_limit_ratio": statistics.median(speeds[1:]) / limit,
        "batch_size_images": size,
    }


def million(check: Check) -> Figures:
    """Train for some steps on a million slices that stay on disk, memory-mapped."""
    import engine

    if check.tiny:
        engine.LARGE_IMAGES = 20_000
    return engine.large(check.bench, 8 if check.tiny else LARGE_STEPS)


PARTS: tuple[Callable[[Check], Figures], ...] = (
    device,
    training,
    seeds_recipe,
    precisions,
    determinism,
    out_of_memory,
    step_against_limit,
    profile,
    peers,
    at_224_pixels,
    million,
)


def attempt(part: Callable[[Check], Figures], check: Check) -> Figures:
    """Return the figures of a part, or why there are none."""
    try:
        return part(check)
    except ModuleNotFoundError as error:
        return {"failed": f"the package {error.name} is missing"}
    except Exception as error:
        return {"failed": " ".join(str(error).split()) or type(error).__name__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--tiny", action="store_true", help="minutes on a CPU: a few slices")
    options = parser.parse_args()
    document: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="alexmri-gpu-") as folder:
        os.environ["ALEXMRI_CACHE_DIR"] = str(Path(folder) / "cache")
        check = Check(options.data, Path(folder), options.tiny)
        for part in PARTS:
            document[part.__name__] = attempt(part, check)
            print(json.dumps({part.__name__: document[part.__name__]}, indent=2), flush=True)
            if options.json:
                write_json(options.json, document)
    failed = [name for name, figures in document.items() if "failed" in figures]
    print(f"failed: {', '.join(failed)}" if failed else f"all {len(PARTS)} parts ran", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
