"""Check training on the machine at hand, meant for a GPU that is lent for minutes.

    python bench/gpu.py [--data DIR] [--json FILE] [--tiny]

Five parts run in this order: the device, the whole default training, the speed of the engine
against its limit, determinism, and a profile of ten steps. Each result is printed and written to
FILE at once, so a run that is cut short keeps what it measured. A part that fails is recorded with
one sentence and the next part runs; the exit code is then 1. Without --data synthetic slices are
drawn. `--tiny` checks this program on two CPU cores within two minutes.

Needs no network. The parts that train need torch, numpy, Pillow, pydantic, safetensors, scipy,
scikit-learn, matplotlib, jinja2, click and rich; albumentations, torchvision, wandb and boto3 may
be missing. Set PYTHONPATH=code where alexmri is not installed.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Each part imports the rest by itself, so that a missing package costs one part.
from alexmri.contract.signals import StopRequest
from alexmri.files import write_json

if TYPE_CHECKING:
    from subject import Bench

    from alexmri.training.loop import Run

PREFLIGHT = Path(__file__).parents[1] / "container" / "preflight"
TINY_SUBJECTS = {"MildDemented": 3, "NonDemented": 3}
TINY_SLICES = 16
ROUNDS = 3
DETERMINISTIC_EPOCHS = 3
WARMUP_STEPS, PROFILED_STEPS = 3, 10
HEAVIEST = 10
# What a trace calls the work of the device; its other events repeat these or wait for them.
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")

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
        from subject import bench_of

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
        engine = next(epochs)["images_per_second"]
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
    """Train twice with --deterministic and compare the weights."""
    from engine import train

    epochs = 1 if check.tiny else DETERMINISTIC_EPOCHS
    sums = []
    for _ in range(2):
        options = ("--deterministic", "--epochs", str(epochs))
        weights = train(check.data, check.scratch, *options) / "model" / "model.safetensors"
        sums.append(hashlib.sha256(weights.read_bytes()).hexdigest())
    identical = sums[0] == sums[1]
    figures: Figures = {"identical": identical, "sha256": sums, "epochs": epochs}
    if not identical:
        figures["failed"] = "two runs with --deterministic wrote different weights"
    return figures


def profile(check: Check) -> Figures:
    """Time ten steps of the engine, then profile the ten that follow."""
    from engine import make_run
    from torch.profiler import ProfilerActivity

    from alexmri.terminal import PlainTerminal

    bench, train = check.bench, check.bench.dataset.part("train")
    # All steps must lie in one epoch, with no validation between them.
    steps = WARMUP_STEPS + 2 * PROFILED_STEPS
    size = max(2, min(bench.settings.batch_size, len(train) // (steps + 1)))
    settings = bench.settings.model_copy(update={"batch_size": size})
    short = type(bench)(bench.data, bench.scratch, settings, bench.compute, bench.dataset)
    run = make_run(short, train, bench.dataset.part("validation"))
    on_gpu = bench.compute.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    stop = ProfiledSteps(run, activities)
    for _ in run.epochs(stop, PlainTerminal()):
        raise RuntimeError(f"the training split has too few images for {steps} steps")
    milliseconds = stop.seconds / PROFILED_STEPS * 1e3
    figures: Figures = {"batch_size_images": size, "milliseconds_per_step": milliseconds}
    if on_gpu:
        trace = check.scratch / "trace.json"
        stop.profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return figures | device_figures(events, PROFILED_STEPS, milliseconds)
    operators = [row for row in stop.profiler.key_averages() if row.self_cpu_time_total]
    figures["operators_per_step"] = sum(row.count for row in operators) / PROFILED_STEPS
    shares = heaviest({row.key: row.self_cpu_time_total for row in operators})
    return figures | {"heaviest_time_share": sum(shares.values()), "operator_time_shares": shares}


class ProfiledSteps(StopRequest):
    """Times ten steps after the warm-up, profiles the next ten, and then asks the run to stop."""

    def __init__(self, run: "Run", activities: Sequence[Any]) -> None:
        from torch.profiler import profile

        super().__init__()
        self._run, self._done, self._started = run, -1, 0.0
        self.profiler, self.seconds = profile(activities=activities), 0.0

    def __bool__(self) -> bool:
        step = self._run.progress.step
        over = step >= WARMUP_STEPS + 2 * PROFILED_STEPS
        if step == self._done:  # asked a second time before the same step
            return over
        self._done = step
        if step == WARMUP_STEPS:
            self._wait()
            self._started = time.perf_counter()
        elif step == WARMUP_STEPS + PROFILED_STEPS:
            self._wait()
            self.seconds = time.perf_counter() - self._started
            self.profiler.start()
        elif over:
            self._wait()
            self.profiler.stop()
        return over

    def _wait(self) -> None:
        import torch

        if self._run.compute.device.type == "cuda":
            torch.cuda.synchronize()


def device_figures(
    events: Sequence[Mapping[str, Any]], steps: int, milliseconds_per_step: float
) -> Figures:
    """Return what the events of a trace (times in microseconds) say of the device.

    The busy share compares the device's time with steps that were not profiled, since profiling
    slows the CPU down and leaves gaps.
    """
    work = [event for event in events if event.get("cat") in DEVICE_WORK]
    kernels = [event for event in work if event["cat"] == "kernel"]
    by_name: dict[str, float] = defaultdict(float)
    for event in kernels:
        by_name[event["name"]] += event["dur"]
    busy = end = 0.0
    for start, duration in sorted((event["ts"], event["dur"]) for event in work):
        busy += max(0.0, start + duration - max(start, end))
        end = max(end, start + duration)
    shares = heaviest(by_name)
    return {
        "kernel_launches_per_step": len(kernels) / steps,
        "device_milliseconds_per_step": busy / steps / 1e3,
        "device_busy_share": busy / steps / 1e3 / milliseconds_per_step,
        "heaviest_time_share": sum(shares.values()),
        "kernel_time_shares": shares,
    }


def heaviest(times: Mapping[str, float]) -> dict[str, float]:
    """Return the largest shares of the whole time, the largest first."""
    whole = sum(times.values()) or 1.0
    ranked = sorted(times, key=lambda name: times[name], reverse=True)[:HEAVIEST]
    return {name: times[name] / whole for name in ranked}


PARTS: tuple[Callable[[Check], Figures], ...] = (
    device,
    training,
    step_against_limit,
    determinism,
    profile,
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
