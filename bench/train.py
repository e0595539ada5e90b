"""Measure how fast this machine trains: the engine beside its arithmetic, textbook and peers.

    python bench/train.py --data DIR --json FILE [--repeats 3] [--full]

`limit` is forward, backward and optimiser on one batch that never changes; `engine` an epoch of
the default recipe (order, augmentation, step, sums), without validation, over as many images as
take seconds; `textbook` the same recipe written as tutorials write it (bench/peers/). All are
images per second: medians over rounds in which each is measured once, so that what else the machine
does hits all of them; ratios are medians of the rounds' ratios. A CPU without bf16 arithmetic
computes three images a second in it: there the columns of bf16 are null. Without --data synthetic
slices are drawn. It ends within five minutes on two cores. `--full` adds the default job to its end
and three seeds of the recipe by engine and by textbook, which takes hours on two cores. The peers
besides the textbook need requirements/bench.txt, see there.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import arithmetic
import torch
from arithmetic import summary
from engine import (
    decoding,
    epochs_of,
    first_images,
    large,
    make_run,
    start_and_memory,
    train_to_the_end,
)
from fixture import Bench, bench_of
from peers.run import ask, best_workers, speed_of

from alexmri.contract.resources import ask_for_large_pages, cpu_cores
from alexmri.data.phantom import write_demo_data
from alexmri.model.forward import choose_compute
from alexmri.training.provenance import machine_document

FULL_SEEDS = (0, 1, 2)
# What an epoch of the engine shall take.
EPOCH_SECONDS = 12


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Return the table, measured in `repeats` rounds."""
    say = partial(print, flush=True)
    gemm = arithmetic.best_gemm(bench.compute)
    say(f"the best matrix product: {gemm / 1e9:.0f} GFLOP/s; now the textbook's loader")
    workers, by_workers = best_workers(bench, "fp32")
    by_workers_bf16: dict[str, float] = {}
    has_bf16 = choose_compute("auto").precision == "bf16"
    if has_bf16:
        workers_bf16, by_workers_bf16 = best_workers(bench, "bf16")
    else:
        say("bf16 is skipped: this CPU has no bf16 arithmetic")
    say(f"textbook by workers: fp32 {by_workers}, bf16 {by_workers_bf16}")
    limit = arithmetic.limit(bench.settings, bench.classes, bench.compute)
    train = first_images(bench.dataset.part("train"), round(limit * EPOCH_SECONDS))
    run = make_run(bench, train, bench.dataset.part("validation"))
    epochs = epochs_of(run)
    next(epochs)  # the warm-up
    textbook = partial(speed_of, bench, "textbook")
    columns: dict[str, Callable[[], float]] = {
        "limit": lambda: arithmetic.limit(bench.settings, bench.classes, bench.compute),
        "engine": lambda: next(epochs)["images_per_second"],
        "textbook": partial(textbook, workers=workers, precision="fp32"),
    }
    if has_bf16:
        columns["textbook_bf16"] = partial(textbook, workers=workers_bf16, precision="bf16")
    could_not: dict[str, str] = {}
    for peer in ("with_timm", "with_lightning"):
        try:
            speed_of(bench, peer, workers=workers, precision="fp32")
        except RuntimeError as error:
            could_not[peer] = f"{error} (pip install the requirements/bench.txt, see there)"
            continue
        columns[peer] = partial(speed_of, bench, peer, workers=workers, precision="fp32")
    runs: dict[str, list[float]] = {name: [] for name in columns}
    for number in range(1, repeats + 1):
        for name, column in columns.items():
            runs[name].append(column())
        shown = ", ".join(f"{name} {speeds[-1]:.0f}" for name, speeds in runs.items())
        say(f"round {number}/{repeats}, images/s: {shown}")
    medians = {name: statistics.median(speeds) for name, speeds in runs.items()}
    operations = arithmetic.operations_per_image(bench.settings, bench.classes)
    rate = medians["limit"] * operations["step"]
    return {
        **{name: medians.get(name) for name in ("limit", "engine", "textbook", "textbook_bf16")},
        "engine_images": len(train),
        "limit_gemm_fraction": rate / gemm,
        "engine_over_limit": ratio(runs, "engine", "limit"),
        "engine_over_textbook": ratio(runs, "engine", "textbook"),
        "engine_over_textbook_bf16": ratio(runs, "engine", "textbook_bf16") if has_bf16 else None,
        "peers": {
            **{name: medians[name] for name in columns if name.startswith("with_")},
            "could_not_run": could_not,
        },
        "runs": {name: summary(speeds) for name, speeds in runs.items()},
        "textbook_by_workers": {"fp32": by_workers, "bf16": by_workers_bf16},
        "floor": {
            "gemm_operations_per_second": gemm,
            "operations_per_image": operations,
            **arithmetic.bytes_per_step(bench.settings, bench.classes, bench.compute),
            "images_per_second_at_gemm_rate": gemm / operations["step"],
        },
    }


def ratio(runs: Mapping[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(runs[above], runs[below], strict=True))


def accuracy(bench: Bench, workers: int) -> dict[str, Any]:
    """Return test figures of engine and textbook for the same seeds, which are other splits."""
    rows: dict[str, list[dict[str, Any]]] = {"engine": [], "textbook": []}
    for seed in FULL_SEEDS:
        rows["engine"].append(train_to_the_end(bench.data, bench.scratch, "--seed", str(seed)))
        seeded = bench_of(bench.data, bench.scratch, seed=seed)
        epochs, fp32 = bench.settings.epochs, {"workers": workers, "precision": "fp32"}
        rows["textbook"].append(ask(seeded, "textbook", epochs=epochs, **fp32))
        print(f"seed {seed}: {rows['engine'][-1]}, textbook {rows['textbook'][-1]}", flush=True)
    means = {
        who: {
            f"{figure}_{name}": compute([row[figure] for row in found])
            for figure in ("accuracy", "macro_f1")
            for name, compute in (("mean", statistics.mean), ("sd", statistics.stdev))
        }
        for who, found in rows.items()
    }
    return {"seeds": rows, **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="hours: the whole job, and accuracy")
    options = parser.parse_args()
    ask_for_large_pages()
    torch.set_num_threads(cpu_cores())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = options.data
        if data is None:
            data = scratch / "slices"
            print(f"no --data: {write_demo_data(data)} synthetic slices are used", flush=True)
        bench = bench_of(data, scratch, seed=0)
        document = {
            **measure(bench, options.repeats),
            "end_to_end": start_and_memory(bench),
            "decoding": decoding(bench),
            "large": large(bench),
        }
        if options.full:
            document["end_to_end"] |= {"default_job": train_to_the_end(bench.data, bench.scratch)}
            workers = document["textbook_by_workers"]["fp32"]
            document["accuracy"] = accuracy(bench, int(max(workers, key=workers.get)))
        document |= {
            "data": "synthetic" if options.data is None else str(options.data.name),
            "images": len(bench.dataset.folder.images),
            "settings": bench.settings.model_dump(mode="json"),
            "machine": machine_document(bench.compute.device, bench.compute.precision),
        }
    print(json.dumps({k: v for k, v in document.items() if isinstance(v, float)}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
