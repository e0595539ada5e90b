"""Measure how fast this machine trains: the engine beside its arithmetic, textbook and peers.

    python bench/train.py --data DIR --json FILE [--repeats 3] [--full]

`limit` is forward, backward and optimiser on one batch that never changes; `engine` an epoch of
the default recipe (order, augmentation, step, sums), without validation, over as many images as
take seconds; `textbook` the same recipe written as tutorials write it (bench/peers/). All are
images per second: medians over rounds in which each is measured once, so that what else the machine
does hits all of them; ratios are medians of the rounds' ratios. Where a CPU lacks bf16, all is
measured in fp32 and the columns of bf16 are null. Without --data synthetic slices are drawn. It
takes five to ten minutes on two cores. `--full` adds the default job to its end and three seeds of
the recipe by engine and by textbook, which takes hours on two cores. The peers besides the textbook
need requirements/bench.txt, see there.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import WHOLE_IMAGE, Bench, train_command, train_to_the_end
from measure import ratio, summary

from alexmri.contract.resources import ask_for_large_pages, cpu_cores
from alexmri.data.cache import open_cache
from alexmri.data.dataset import Part, Rows
from alexmri.data.folders import discover
from alexmri.data.phantom import write_demo_data
from alexmri.model.alexnet import summarise
from alexmri.model.forward import Compute, Precision, choose_compute
from alexmri.terminal import PlainTerminal
from alexmri.training.provenance import machine_document

FULL_SEEDS = (0, 1, 2)
EPOCH_SECONDS = 12  # what an epoch of the engine shall take
TRAINED_SECONDS = 10  # memory grows in the first steps alone


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Return the table, measured in `repeats` rounds."""
    gemm = best_gemm(bench.compute)
    say(f"the best matrix product: {gemm / 1e9:.0f} GFLOP/s; now the textbook's loader")
    precisions = ["fp32", *(["bf16"] if bench.compute.precision == "bf16" else [])]
    by_workers: dict[str, dict[str, float]] = {"fp32": {}, "bf16": {}}
    for precision, number in itertools.product(precisions, (0, 1, 2)):
        speed = bench.speed_of_peer("textbook", precision=precision, workers=number)
        by_workers[precision][str(number)] = speed
        say(f"textbook, {precision}, {number} workers: {speed:.0f} images/s")
    workers = {each: best_workers(by_workers[each]) for each in precisions}
    train = first_images(bench.dataset.part("train"), round(bench.limit() * EPOCH_SECONDS))
    epochs = bench.epochs(train)
    say("an epoch to warm up")
    next(epochs)
    columns: dict[str, Callable[[], float]] = {
        "limit": bench.limit,
        "engine": lambda: next(epochs)["images_per_second"],
    }
    for name, precision in zip(("textbook", "textbook_bf16"), precisions, strict=False):
        wishes = {"workers": workers[precision], "precision": precision}
        columns[name] = partial(bench.speed_of_peer, "textbook", **wishes)
    could_not: dict[str, str] = {}
    for peer in ("with_timm", "with_lightning"):
        ask = partial(bench.speed_of_peer, peer, workers=workers["fp32"], precision="fp32")
        try:
            ask()
            columns[peer] = ask
        except RuntimeError as error:
            could_not[peer] = f"{error} (pip install the requirements/bench.txt, see there)"
    runs: dict[str, list[float]] = {name: [] for name in columns}
    for number in range(1, repeats + 1):
        for name, column in columns.items():
            runs[name].append(column())
            say(f"round {number}/{repeats}, {name}: {runs[name][-1]:.0f} images/s")
    medians = {name: statistics.median(speeds) for name, speeds in runs.items()}
    costs = floor(bench)
    operations = costs["operations_per_image"]["step"]
    below = [name for name in ("limit", "textbook", "textbook_bf16") if name in runs]
    return {
        **{name: medians.get(name) for name in ("limit", "engine", "textbook", "textbook_bf16")},
        "engine_images": len(train),
        "limit_gemm_fraction": medians["limit"] * operations / gemm,
        "engine_over_textbook_bf16": None,
        **{f"engine_over_{name}": ratio(runs["engine"], runs[name]) for name in below},
        "peers": {
            **{name: medians[name] for name in columns if name.startswith("with_")},
            "could_not_run": could_not,
        },
        "runs": {name: summary(speeds) for name, speeds in runs.items()},
        "textbook_by_workers": by_workers,
        "floor": {
            "gemm_operations_per_second": gemm,
            **costs,
            "images_per_second_at_gemm_rate": gemm / operations,
        },
    }


def usable_precision() -> Precision:
    """Return the precision the engine would choose, but fp32 where a CPU only emulates bf16.

    Emulated, a training takes three images a second; `auto` goes by what the CPU says of itself.
    """
    chosen = choose_compute("auto")
    if chosen.device.type == "cuda" or chosen.precision == "fp32":
        return chosen.precision
    seconds = {}
    for dtype in (torch.float32, chosen.dtype):
        images = torch.ones(4, 96, 15, 15, dtype=dtype)
        weights = torch.ones(256, 96, 5, 5, dtype=dtype)
        torch.conv2d(images, weights)  # the warm-up
        started = time.perf_counter()
        torch.conv2d(images, weights)
        seconds[dtype] = time.perf_counter() - started
    emulated = seconds[chosen.dtype] > 3 * seconds[torch.float32]
    return "fp32" if emulated else chosen.precision


def best_workers(speeds: dict[str, float]) -> int:
    return int(max(speeds, key=lambda number: speeds[number]))


def first_images(part: Part, images: int) -> Part:
    """Return the first of the images of `part`, at least eight batches of the default recipe."""
    rows_N = np.arange(min(max(512, images), len(part)))
    names = tuple(part.names[row] for row in rows_N)
    return Part(Rows(part.pixels_NCHW, rows_N), part.labels_N[rows_N], None, names)


def best_gemm(compute: Compute, seconds: float = 0.5) -> float:
    """Return the highest rate of a square matrix product in this precision, in operations/s."""
    best = 0.0
    for side in (1024, 2048, 4096):
        a, b = torch.randn(2, side, side, device=compute.device).to(compute.dtype)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            started = time.perf_counter()
            torch.mm(a, b)
            if compute.device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def floor(bench: Bench) -> dict[str, Any]:
    """Return the operations of an image, a multiply-add being two, and the bytes of a step.

    Operations: forward, gradient of the weights, gradient of the inputs, but that of the first
    layer. Bytes, whatever the batch: the pass reads the weights twice and writes their gradients,
    the optimiser reads these and reads and writes weights and momenta. In reduced precision
    gradients are turned into float32 before the optimiser, weights are copied after it.
    """
    shape = bench.settings.model_dump(include={"image_size", "channels", "dropout"})
    layers = summarise(classes=len(bench.dataset.classes), **shape)
    adds = [layer.multiply_adds for layer in layers if layer.multiply_adds]
    weights = sum(layer.parameters for layer in layers)
    reduced = bench.compute.precision != "fp32"
    each = 3 * 2 + (2 + 4) + (4 + 2) + 5 * 4 if reduced else 3 * 4 + 5 * 4
    return {
        "operations_per_image": {
            "forward": 2.0 * sum(adds),
            "step": 6.0 * sum(adds) - 2.0 * adds[0],
        },
        "parameters": float(weights),
        "bytes_per_step": float(weights * each),
    }


def start_and_memory(bench: Bench) -> dict[str, float]:
    """Train for some seconds in a process of its own; time its start, measure its peak memory."""
    started = time.perf_counter()
    out = Path(tempfile.mkdtemp(dir=bench.scratch))
    options = ("--epochs", "1", "--workers-per-host", "1", "--precision", bench.compute.precision)
    command = train_command(bench.data, out, *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    lines = (time.perf_counter() for line in process.stdout if re.match(r"\d+ epochs? of ", line))
    first_step = next(lines, None)
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
        cache = open_cache(
            folder, image_size=size, channels=1, workers=workers, terminal=PlainTerminal()
        )
        assert cache.seconds is not None
        result[f"microseconds_{name}"] = cache.seconds / len(folder.images) * 1e6
    del os.environ["ALEXMRI_CACHE_DIR"]
    if before is not None:
        os.environ["ALEXMRI_CACHE_DIR"] = before
    return result


def accuracy(bench: Bench, workers: int) -> dict[str, Any]:
    """Return test figures of engine and textbook for the same seeds, which are other splits."""
    rows: dict[str, list[dict[str, float]]] = {"engine": [], "textbook": []}
    wishes = {"epochs": bench.settings.epochs, "workers": workers, "precision": "fp32"}
    for seed in FULL_SEEDS:
        options = ["--seed", str(seed), "--precision", bench.compute.precision]
        options += [f"--{key}={value}" for key, value in WHOLE_IMAGE.items()]
        rows["engine"].append(train_to_the_end(bench.data, bench.scratch, *options))
        seeded = Bench.of(bench.data, bench.scratch, seed=seed)
        rows["textbook"].append(seeded.ask_peer("textbook", **wishes))
        say(f"seed {seed}: {rows['engine'][-1]}, textbook {rows['textbook'][-1]}")
    means = {
        who: {
            f"{figure}_{name}": compute([row[figure] for row in found])
            for figure in ("accuracy", "macro_f1")
            for name, compute in (("mean", statistics.mean), ("sd", statistics.stdev))
        }
        for who, found in rows.items()
    }
    return {"seeds": rows, **means}


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="hours: the whole job, and accuracy")
    options = parser.parse_args()
    say("this takes hours" if options.full else "this takes five to ten minutes on two cores")
    ask_for_large_pages()
    torch.set_num_threads(cpu_cores())
    with tempfile.TemporaryDirectory() as folder:
        terminal, data = PlainTerminal(), options.data or Path(folder) / "slices"
        if options.data is None:
            say("no --data: synthetic slices are used")
            write_demo_data(data, track=terminal.track)
        precision = usable_precision()
        if precision == "fp32":
            say("everything is measured in fp32, because this CPU lacks bf16")
        bench = Bench.of(data, Path(folder), precision=precision)
        say("part 1 of 4: the speed of the engine, of its limit and of the peers")
        document = measure(bench, options.repeats)
        say("part 2 of 4: the start and the memory of a training")
        document["end_to_end"] = start_and_memory(bench)
        say("part 3 of 4: decoding the images")
        document["decoding"] = decoding(bench)
        say("part 4 of 4: a million slices on disk")
        document["large"] = bench.large()
        if options.full:
            say("the default job, to its end")
            document["end_to_end"]["default_job"] = train_to_the_end(
                bench.data, bench.scratch, "--precision", precision
            )
            say("three seeds of the recipe, by engine and by textbook")
            workers = best_workers(document["textbook_by_workers"]["fp32"])
            document["accuracy"] = accuracy(bench, workers)
        document |= {
            "data": "synthetic" if options.data is None else str(options.data.name),
            "images": len(bench.dataset.folder.images),
            "settings": bench.settings.model_dump(mode="json"),
            "machine": machine_document(bench.compute.device, bench.compute.precision),
        }
    say(json.dumps({k: v for k, v in document.items() if isinstance(v, float)}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
