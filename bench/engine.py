"""Measure the engine: whole epochs, its start, its memory, decoding, and a million slices."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import arithmetic
import numpy as np
import torch
from fixture import Bench

from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data import loader
from alexmri.data.augment import choose_augment
from alexmri.data.cache import open_cache
from alexmri.data.dataset import Part, Rows
from alexmri.data.folders import discover
from alexmri.terminal import PlainTerminal
from alexmri.training.loop import Run

COMMAND = [sys.executable, "-c", "from alexmri.cli import main; main()"]
LARGE_IMAGES = 1_000_000
LARGE_STEPS = 24
# How long memory is watched: it grows in the first steps alone.
TRAINED_SECONDS = 10


def make_run(bench: Bench, train: Part, validation: Part) -> Run:
    network = arithmetic.network_of(bench.settings, bench.classes, bench.compute)
    augment = choose_augment(bench.settings)
    return Run(network, train, validation, bench.settings, bench.compute, augment)


def first_images(part: Part, images: int) -> Part:
    """Return the first of the images of `part`, at least eight batches of the default recipe."""
    kept = max(512, images)
    rows_N = np.arange(min(kept, len(part)))
    names = tuple(part.names[row] for row in rows_N)
    return Part(Rows(part.pixels_NCHW, rows_N), part.labels_N[rows_N], None, names)


def epochs_of(run: Run) -> Iterator[dict[str, float]]:
    return run.epochs(StopRequest(), PlainTerminal())


def train_command(data: Path, out: Path, *options: str) -> list[str]:
    command = [*COMMAND, "train", "--data", str(data), "--out", str(out)]
    return [*command, "--wandb-mode", "disabled", *options]


def train(data: Path, scratch: Path, *options: str, out: Path | None = None) -> Path:
    """Run `alexmri train` to its end; return the folder it wrote.

    Raises:
        RuntimeError: the training failed; with its last line.
    """
    out = out or Path(tempfile.mkdtemp(dir=scratch))
    done = subprocess.run(train_command(data, out, *options), capture_output=True, text=True)
    if done.returncode:
        last_words = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise RuntimeError(f"alexmri train: {' '.join(last_words)} (exit code {done.returncode})")
    return out


def train_interrupted(data: Path, scratch: Path, *options: str) -> Path:
    """Run `alexmri train`, stop it by SIGTERM after its first epoch, resume it; return its folder.

    Raises:
        RuntimeError: it failed, or ended before the signal came.
    """
    out = Path(tempfile.mkdtemp(dir=scratch))
    command = train_command(data, out, *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch=1;"):
                process.terminate()
    train(data, scratch, *options, out=out)
    if not list(out.glob("**/step-*.json")):
        raise RuntimeError("the training that was to be stopped had ended before: no checkpoint")
    return out


def train_to_the_end(data: Path, scratch: Path, *options: str) -> dict[str, float]:
    """Train with the default recipe; return its figures and how long it took."""
    started = time.perf_counter()
    out = train(data, scratch, *options)
    seconds = time.perf_counter() - started
    test = json.loads((out / "evaluation.json").read_text())["test"]
    return {
        "seconds": seconds,
        "training_seconds": json.loads((out / "run.json").read_text())["training_seconds"],
        "accuracy": test["accuracy"]["value"],
        "macro_f1": test["macro_f1"]["value"],
    }


def start_and_memory(bench: Bench) -> dict[str, float]:
    """Train for some seconds in a process of its own; time its start, measure its peak memory."""
    started = time.perf_counter()
    out = tempfile.mkdtemp(dir=bench.scratch)
    command = [*COMMAND, "train", "--data", str(bench.data), "--out", out, "--epochs", "1"]
    command += ["--workers-per-host", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    first_step = next(
        (time.perf_counter() for line in process.stdout if " epochs of " in line), None
    )
    if first_step is None:
        raise RuntimeError(f"alexmri train ended early, with exit code {process.wait()}")
    time.sleep(TRAINED_SECONDS)
    process.kill()
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds_to_first_step": first_step - started,
        "peak_memory_mib": usage.ru_maxrss / 1024,
    }


def decoding(bench: Bench) -> dict[str, float]:
    """Return microseconds per image of decoding everything anew, by one core and by all."""
    before = os.environ.get("ALEXMRI_CACHE_DIR")
    result = {"cores": float(cpu_cores())}
    for name, workers in (("one_core", 1), ("all_cores", cpu_cores())):
        os.environ["ALEXMRI_CACHE_DIR"] = tempfile.mkdtemp(dir=bench.scratch)
        folder, size = discover(bench.data), bench.settings.image_size
        store = open_cache(
            folder, image_size=size, channels=1, workers=workers, terminal=PlainTerminal()
        )
        assert store.seconds is not None
        result[f"microseconds_{name}"] = store.seconds / len(folder.images) * 1e6
    os.environ.pop("ALEXMRI_CACHE_DIR")
    if before is not None:
        os.environ["ALEXMRI_CACHE_DIR"] = before
    return result


def large(bench: Bench, steps: int = LARGE_STEPS) -> dict[str, float]:
    """Train on a million memory-mapped slices for a few steps, reading them from disk."""
    side, share = bench.settings.image_size, loader.MAX_MEMORY_SHARE
    path = Path(tempfile.mkdtemp(dir=bench.scratch)) / "slices.npy"
    shape = (LARGE_IMAGES, bench.settings.channels, side, side)
    array_NCHW = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    generator = np.random.default_rng(0)
    for start in range(0, LARGE_IMAGES, 10_000):
        block_NCHW = array_NCHW[start : start + 10_000]
        block_NCHW[:] = generator.integers(0, 256, block_NCHW.shape, dtype=np.uint8)
    array_NCHW.flush()
    del array_NCHW
    images = np.load(path, mmap_mode="r")
    rows = Rows(images, np.arange(LARGE_IMAGES))
    labels = generator.integers(0, bench.classes, LARGE_IMAGES)
    small = bench.dataset.part("validation")
    part = Part(rows, labels, None, ("",) * LARGE_IMAGES)
    loader.MAX_MEMORY_SHARE = 0.0
    run = make_run(bench, part, small)
    stop = AfterSteps(run, steps)
    list(run.epochs(stop, PlainTerminal()))
    loader.MAX_MEMORY_SHARE = share
    path.unlink()
    return {
        "images": float(LARGE_IMAGES),
        "images_per_second": stop.images_per_second,
        "memory_growth_mib": (anonymous_memory() - stop.memory_at_start) / 2**20,
        "mapped_mib": images.nbytes / 2**20,
    }


class AfterSteps(StopRequest):
    """Asks the run to stop after some steps; times them, and looks at memory, from the fifth on."""

    def __init__(self, run: Run, steps: int) -> None:
        super().__init__(silent=True)
        self._run, self._steps, self._started = run, steps, 0.0

    def __bool__(self) -> bool:
        step = self._run.progress.step
        if step == 4 and not self._started:
            self._wait()
            self._started = time.perf_counter()
            self.memory_at_start = anonymous_memory()
        if step < self._steps:
            return False
        self._wait()
        seconds = time.perf_counter() - self._started
        self.images_per_second = (step - 4) * self._run.settings.batch_size / seconds
        return True

    def _wait(self) -> None:
        if self._run.compute.device.type == "cuda":
            torch.cuda.synchronize()


def anonymous_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
