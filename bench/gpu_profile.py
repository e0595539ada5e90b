"""Time ten steps of the engine, then profile the ten that follow: kernels, gaps, launches."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from engine import make_run
from fixture import Bench
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler_of

from alexmri.contract.signals import StopRequest
from alexmri.terminal import PlainTerminal
from alexmri.training.loop import Run

WARMUP_STEPS, PROFILED_STEPS = 3, 10
HEAVIEST = 10
# What a trace calls the work of the device; its other events repeat these or wait for them.
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")

Figures = dict[str, Any]


def profile(bench: Bench) -> Figures:
    """Return the figures of ten steps of a batch size that leaves them within one epoch."""
    train = bench.dataset.part("train")
    steps = WARMUP_STEPS + 2 * PROFILED_STEPS
    size = max(2, min(bench.settings.batch_size, len(train) // (steps + 1)))
    run = make_run(bench.with_settings(batch_size=size), train, bench.dataset.part("validation"))
    on_gpu = bench.compute.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    stop = ProfiledSteps(run, activities)
    for _ in run.epochs(stop, PlainTerminal()):
        raise RuntimeError(f"the training split has too few images for {steps} steps")
    milliseconds = stop.seconds / PROFILED_STEPS * 1e3
    figures: Figures = {"batch_size_images": size, "milliseconds_per_step": milliseconds}
    if on_gpu:
        trace = bench.scratch / "trace.json"
        stop.profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return figures | device_figures(events, PROFILED_STEPS, milliseconds)
    operators = [row for row in stop.profiler.key_averages() if row.self_cpu_time_total]
    figures["operators_per_step"] = sum(row.count for row in operators) / PROFILED_STEPS
    shares = heaviest({row.key: row.self_cpu_time_total for row in operators})
    return figures | {"heaviest_time_share": sum(shares.values()), "operator_time_shares": shares}


class ProfiledSteps(StopRequest):
    """Times ten steps after the warm-up, profiles the next ten, and then asks the run to stop."""

    def __init__(self, run: Run, activities: Sequence[Any]) -> None:
        super().__init__(silent=True)
        self._run, self._done, self._started = run, -1, 0.0
        self.profiler, self.seconds = profiler_of(activities=activities), 0.0

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
    calls = [event for event in events if event.get("cat") in CALLS]
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
        "kernels_per_step": len(kernels) / steps,
        # A CUDA graph's kernels are launched by one call.
        "launches_per_step": sum("Launch" in event["name"] for event in calls) / steps,
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
