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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Each part imports the rest by itself, so that a missing package costs one part.
from alexmri.errors import UserError
from alexmri.files import write_json

if TYPE_CHECKING:
    from engine import Bench

PREFLIGHT = Path(__file__).parents[1] / "container" / "preflight"
TINY_SUBJECTS, TINY_SLICES = {"MildDemented": 3, "NonDemented": 3}, 16
ROUNDS = 3
# Long enough to stop a training after its first epoch.
DETERMINISTIC_EPOCHS, TINY_EPOCHS = 20, 10
PEER_EPOCHS = 3
LARGE_STEPS = 200
WARMUP_STEPS, PROFILED_STEPS = 3, 10
# What a trace calls the work of the device; its other events repeat these or wait for them.
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")

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
        from engine import Bench

        from alexmri.contract.resources import ask_for_large_pages, cpu_cores

        ask_for_large_pages()
        torch.set_num_threads(cpu_cores())
        return Bench.of(self.data, self.scratch)


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


def training(check: Check, *options: str) -> Figures:
    """Train with the default recipe to its end."""
    from engine import train_to_the_end

    epochs = ("--epochs", "1") if check.tiny else ()
    return train_to_the_end(check.data, check.scratch, *options, *epochs)


def seeds_recipe(check: Check) -> Figures:
    """Train with the recipe `baseline`, 100 epochs, to its end."""
    return training(check, "--recipe", "baseline")


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
    for number in range(ROUNDS + 1):
        limit, engine = bench.limit(steps), engine_speed(epochs)
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


def engine_speed(epochs: Iterator[dict[str, float]]) -> float:
    """Return the median of some epochs after one that warms up: it is slow after a pause."""
    next(epochs)
    return statistics.median(next(epochs)["images_per_second"] for _ in range(ROUNDS))


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
    same = {"identical": first == second, "resumed_identical": first == resumed}
    figures: Figures = {**same, "sha256": sums, "epochs": epochs}
    if not all(same.values()):
        figures["failed"] = "runs with --deterministic wrote different weights"
    return figures


def profile(check: Check) -> Figures:
    """Time ten steps of the engine, then profile the ten that follow: kernels, gaps, launches."""
    from engine import AtSteps, now
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler_of

    from alexmri.terminal import PlainTerminal

    device = check.bench.compute.device
    timed, last = WARMUP_STEPS + PROFILED_STEPS, WARMUP_STEPS + 2 * PROFILED_STEPS
    images = len(check.bench.dataset.part("train"))
    # All steps lie within one epoch.
    size = max(2, min(check.bench.settings.batch_size, images // (last + 1)))
    run = check.bench.with_settings(batch_size=size).run()
    on_gpu = device.type == "cuda"
    profiler = profiler_of(
        activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    )
    times: list[float] = []

    def begin_profile() -> None:
        times.append(now(device))
        profiler.start()

    def end_profile() -> None:
        now(device)
        profiler.stop()

    begin = {WARMUP_STEPS: lambda: times.append(now(device)), timed: begin_profile}
    actions = begin | {last: end_profile}
    if list(run.epochs(AtSteps(run, actions), PlainTerminal())):
        raise RuntimeError(f"the training split has too few images for {last} steps")
    milliseconds = (times[1] - times[0]) / PROFILED_STEPS * 1e3
    figures: Figures = {"batch_size_images": size, "milliseconds_per_step": milliseconds}
    if on_gpu:
        trace = check.scratch / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return figures | device_figures(events, PROFILED_STEPS, milliseconds)
    operators = [row for row in profiler.key_averages() if row.self_cpu_time_total]
    shares = heaviest({row.key: row.self_cpu_time_total for row in operators})
    return {
        **figures,
        "operators_per_step": sum(row.count for row in operators) / PROFILED_STEPS,
        "heaviest_time_share": sum(shares.values()),
        "operator_time_shares": shares,
    }


def device_figures(
    events: Sequence[Mapping[str, Any]], steps: int, milliseconds_per_step: float
) -> Figures:
    """Return what the events of a trace (times in microseconds) say of the device.

    The busy share compares the device's time with steps that were not profiled, since profiling
    slows the CPU down and leaves gaps.
    """
    work = [event for event in events if event.get("cat") in DEVICE_WORK]
    kernels = [event for event in work if event["cat"] == "kernel"]
    by_name: Counter[str] = Counter()
    for event in kernels:
        by_name[event["name"]] += event["dur"]
    busy = end = 0.0
    for start, duration in sorted((event["ts"], event["dur"]) for event in work):
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    # A CUDA graph's kernels are launched by one call.
    launches = [e for e in events if e.get("cat") in CALLS and "Launch" in e["name"]]
    shares = heaviest(by_name)
    return {
        "kernels_per_step": len(kernels) / steps,
        "launches_per_step": len(launches) / steps,
        "device_milliseconds_per_step": busy / steps / 1e3,
        "device_busy_share": busy / steps / 1e3 / milliseconds_per_step,
        "heaviest_time_share": sum(shares.values()),
        "kernel_time_shares": shares,
    }


def heaviest(times: Mapping[str, float]) -> dict[str, float]:
    """Return the ten largest shares of the whole time, the largest first."""
    whole = sum(times.values()) or 1.0
    return {name: spent / whole for name, spent in Counter(times).most_common(10)}


def peers(check: Check) -> Figures:
    """Measure the textbook loop, timm and a loop like airbench's, each beside an engine epoch."""
    from alexmri.contract.resources import cpu_cores

    bench, epochs = check.bench, check.bench.epochs()
    images = len(bench.dataset.part("train"))
    steps = 2 if check.tiny else PEER_EPOCHS * images // bench.settings.batch_size
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
                speeds[workers] = bench.speed_of_peer(script, **wishes)
        except RuntimeError as error:
            figures["could_not_run"][peer] = str(error)
            continue
        engine = engine_speed(epochs)
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
    speeds = [next(epochs)["images_per_second"] for _ in range(2 if check.tiny else 1 + ROUNDS)]
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
