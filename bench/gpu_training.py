"""The parts of bench/gpu.py that train: whole trainings, speed, precision, memory, large data."""

import hashlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Each part imports the rest by itself, so that a missing package costs one part.
from gpu_check import Check, Figures

from alexmri.errors import UserError

# Long enough to stop a training after its first epoch.
DETERMINISTIC_EPOCHS = "20"
PEER_EPOCHS, TINY_BATCH = 3, 8
LARGE_STEPS = 200
AUDITED_IMAGES, TINY_AUDITED_IMAGES, SLICES_PER_SUBJECT = 100_000, 200, 32


def training(check: Check) -> Figures:
    """Train with the default recipe to its end; the parts about a model use what it leaves."""
    from engine import train_to_the_end

    return train_to_the_end(check.data, check.scratch, *check.options, out=check.out_folder)


def seeds_recipe(check: Check) -> Figures:
    """Train with the recipe `baseline`, 100 epochs, to its end."""
    from engine import train_to_the_end

    options = ("--epochs", "1") if check.tiny else ()
    return train_to_the_end(check.data, check.scratch, "--recipe", "baseline", *options)


def out_of_memory(check: Check) -> Figures:
    """Ask for a batch that no GPU holds, then for the ones that the errors name, until one fits."""
    import torch
    from engine import train

    if not torch.cuda.is_available():
        return {"skipped": "there is no GPU"}
    # Images enough for a batch that 80 GiB do not hold at this size.
    size, sentences = 3000, list[str]()
    options = ("--image-size", "512", "--epochs", "1", "--precision", "fp32")
    while len(sentences) < 4:
        try:
            train(check.data, check.scratch, *options, "--batch-size", str(size))
            return {"sentences": sentences, "batch_size_that_fits_images": size}
        except RuntimeError as error:
            sentences.append(str(error))
            found = re.search(r"batch_size (\d+) is likely to fit", str(error))
            if not found:
                return {"failed": f"no batch size is named: {error}"}
            size = int(found[1])
    return {"failed": f"no batch size that was named fits: {sentences}"}


def step_against_limit(check: Check) -> Figures:
    """Measure an epoch of the engine beside as many steps on one batch that stays."""
    from alexmri.data.loader import steps_per_epoch

    bench, epochs = check.bench, check.bench.epochs()
    steps = steps_per_epoch(len(bench.dataset.part("train")), bench.settings.batch_size)
    limits, engines = [], []
    for number in range(check.rounds + 1):
        limit, engine = bench.limit(steps), engine_speed(epochs, check.rounds)
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


def engine_speed(epochs: Iterator[dict[str, float]], rounds: int) -> float:
    """Return the median of some epochs after one that warms up: it is slow after a pause."""
    next(epochs)
    return statistics.median(next(epochs)["images_per_second"] for _ in range(rounds))


def determinism(check: Check) -> Figures:
    """Train twice with --deterministic and once interrupted and resumed; compare the weights.

    A tiny check takes the training that is there for the first two.
    """
    from engine import train, train_interrupted

    options = check.options or ("--deterministic", "--epochs", DETERMINISTIC_EPOCHS)
    ends: list[Path] = []
    if check.tiny:
        ends.append(check.model)
    else:
        ends += [train(check.data, check.scratch, *options) / "model" for _ in range(2)]
    ends.append(train_interrupted(check.data, check.scratch, *options) / "model")
    sums = [hashlib.sha256((end / "model.safetensors").read_bytes()).hexdigest() for end in ends]
    same = {"resumed_identical": sums[0] == sums[-1], "identical": len(set(sums[:-1])) == 1}
    figures: Figures = {**same, "sha256": sums, "options": " ".join(options)}
    if not all(same.values()):
        figures["failed"] = "runs with --deterministic wrote different weights"
    return figures


def peers(check: Check) -> Figures:
    """Measure the textbook loop, timm and a loop like airbench's, each beside an engine epoch."""
    from alexmri.contract.resources import cpu_cores

    bench, epochs = check.bench, check.bench.epochs()
    images = len(bench.dataset.part("train"))
    steps = 2 if check.tiny else PEER_EPOCHS * images // bench.settings.batch_size
    asked = bench.with_settings(batch_size=TINY_BATCH) if check.tiny else bench
    figures: Figures = {"could_not_run": {}}
    for script, precision in (
        ("textbook", "fp32"),
        ("textbook", "bf16"),
        ("with_timm", "bf16"),
        ("airbench", "bf16"),
    ):
        peer = f"{script.removeprefix('with_')}_{precision}"
        alone = script == "airbench" or check.tiny
        speeds = {}
        try:
            for workers in (0,) if alone else (cpu_cores() // 2, cpu_cores()):
                wishes = {"workers": workers, "precision": precision, "steps": steps}
                speeds[workers] = asked.speed_of_peer(script, **wishes)
        except RuntimeError as error:
            figures["could_not_run"][peer] = str(error)
            continue
        engine = engine_speed(epochs, check.rounds)
        figures[peer] = {
            "images_per_second": max(speeds.values()),
            "images_per_second_by_loader_workers": speeds,
            "engine_images_per_second": engine,
            "engine_over_peer_ratio": engine / max(speeds.values()),
        }
    return figures


def precisions(check: Check) -> Figures:
    """Measure an epoch of the engine in each arithmetic."""
    default, figures = check.bench, Figures()
    for precision in ("fp32", "bf16", "fp16"):
        try:
            epochs = default.with_settings(precision=precision).epochs()
        except UserError as error:  # fp16 on a CPU
            figures[precision] = {"skipped": str(error)}
            continue
        rows = [next(epochs) for _ in range(1 + check.rounds)]
        speeds = [row["images_per_second"] for row in rows[1:]]  # the first is the warm-up
        figures[precision] = {
            "images_per_second": statistics.median(speeds),
            "epochs": len(rows),
            "train_loss": rows[-1]["train_loss"],
        }
    return figures


def at_224_pixels(check: Check) -> Figures:
    """Measure an epoch of noise at 224 x 224 beside as many steps on one batch that stays."""
    import numpy as np

    from alexmri.data.dataset import Part

    images = 8 if check.tiny else 4096
    size = 4 if check.tiny else check.bench.settings.batch_size
    bench = check.bench.with_settings(image_size=224, batch_size=size)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, 1, 224, 224), dtype=np.uint8)
    labels = generator.integers(0, len(bench.dataset.classes), images)
    train = Part(pixels, labels, None, ("",) * images)
    epochs = bench.epochs(train, Part(pixels[:8], labels[:8], None, ("",) * 8))
    speeds = [next(epochs)["images_per_second"] for _ in range(1 + check.rounds)]
    engine, limit = statistics.median(speeds[1:]), bench.limit(images // size)
    return {
        "limit_images_per_second": limit,
        "engine_images_per_second": engine,
        "engine_over_limit_ratio": engine / limit,
        "batch_size_images": size,
    }


def million(check: Check) -> Figures:
    """Train for some steps on a million slices that stay on disk, memory-mapped."""
    if check.tiny:
        return check.bench.large(images=20_000, steps=8)
    return check.bench.large(steps=LARGE_STEPS)


def audit(check: Check) -> Figures:
    """Audit 100,000 slices of made-up subjects, each mixed from two slices of the data."""
    images = TINY_AUDITED_IMAGES if check.tiny else AUDITED_IMAGES
    folder = write_mixed_slices(check, images)
    command = [sys.executable, "-c", "from alexmri.cli import main; main()", "audit", str(folder)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    return {"images": images, "seconds": seconds, "images_per_second": images / seconds}


def write_mixed_slices(check: Check, images: int) -> Path:
    """Write `<Class>/<slice> (<subject>).png`: two slices of the data mixed, with noise."""
    import numpy as np
    from PIL import Image

    folder, generator = check.scratch / "mixed", np.random.default_rng(0)
    pixels_NHW = np.asarray(check.bench.dataset.cache.pixels_NCHW[:, 0])
    for label in ("A", "B"):
        (folder / label).mkdir(parents=True)
    for number in range(images):
        subject, index = divmod(number, SLICES_PER_SUBJECT)
        one_HW, other_HW = pixels_NHW[generator.integers(0, len(pixels_NHW), 2)].astype(float)
        share = generator.uniform(0.3, 0.7)
        mixed_HW = share * one_HW + (1 - share) * other_HW + generator.normal(0, 8, one_HW.shape)
        picture = Image.fromarray(mixed_HW.clip(0, 255).astype(np.uint8))
        name = f"{index + 1} ({subject + 1}).png"
        picture.save(folder / "AB"[subject % 2] / name, compress_level=1)
    return folder
