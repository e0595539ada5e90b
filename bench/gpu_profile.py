"""The part of bench/gpu.py that profiles ten steps: kernels, gaps, launches."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_check import Check, Figures

WARMUP_STEPS, PROFILED_STEPS, TINY_STEPS = 3, 10, 3
# What a trace calls the work of the device; its other events repeat these or wait for them.
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")


def profile(check: Check) -> Figures:
    """Time ten steps of the engine, then profile the ten that follow: kernels, gaps, launches."""
    from engine import AtSteps, now
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler_of

    from alexmri.terminal import PlainTerminal

    device = check.bench.compute.device
    steps = TINY_STEPS if check.tiny else PROFILED_STEPS
    timed, last = WARMUP_STEPS + steps, WARMUP_STEPS + 2 * steps
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
    milliseconds = (times[1] - times[0]) / steps * 1e3
    figures: Figures = {"batch_size_images": size, "milliseconds_per_step": milliseconds}
    if on_gpu:
        trace = check.scratch / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
        return figures | device_figures(events, steps, milliseconds)
    operators = [row for row in profiler.key_averages() if row.self_cpu_time_total]
    shares = heaviest({row.key: row.self_cpu_time_total for row in operators})
    return {
        **figures,
        "operators_per_step": sum(row.count for row in operators) / steps,
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
