"""Measure how workers scale on this machine: one with all of its cores, or several that share them.

    python bench/scale.py [--json FILE] [--rounds 3] [--batches 128 256 512 1024]

A step is that of training (alexmri.training.step) on images that stay where they are, so nothing
but arithmetic and communication is measured. `strong`: one batch, dealt to more workers; `weak`: a
batch that grows with the workers. Every worker has its part of the cores, so that a ratio of 1 is
perfect: what is missing is communication, and what each worker does again (weights, dropout).
`apart` is the same step without the sums of gradients. Teams of more workers than there are cores
are measured to show what that costs. All teams live side by side and are
asked in turns, so that what else the machine does hits all of them; ratios are medians of rounds.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from alexmri.contract.resources import ask_for_large_pages, cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.contract.workers import meeting_on_one_host, places
from alexmri.model.alexnet import build
from alexmri.model.forward import choose_compute
from alexmri.settings import resolve
from alexmri.training.distributed import Workers, joined
from alexmri.training.optim import build_optimizer
from alexmri.training.precision import Twin
from alexmri.training.provenance import machine_document
from alexmri.training.step import Whole, train_step

TEAMS = (1, 2, 4)
CLASSES = 4


class Worker:
    """One worker: the network, and the steps it is asked for."""

    def __init__(self, workers: Workers) -> None:
        torch.set_num_threads(max(1, cpu_cores() // workers.size))
        self._settings, self._workers = resolve([]).settings, workers
        self._compute = choose_compute("auto")
        network = build(
            classes=CLASSES, image_size=32, channels=1, dropout=self._settings.dropout, seed=0
        )
        network = network.to(self._compute.device).to(memory_format=torch.channels_last).train()
        self._twin = Twin(network, self._compute.dtype, workers)
        self._optimizer = build_optimizer(network, self._settings)
        self._scaler = torch.amp.GradScaler(self._compute.device.type, enabled=False)
        self.gradient_bytes = sum(p.numel() for p in network.parameters()) * (
            2 if self._compute.precision == "bf16" else 4
        )

    def steps(self, batch: int, steps: int, apart: bool) -> float:
        """Return the seconds that a step takes."""
        own = self._workers.sizes(batch)[self._workers.rank]
        images_NCHW = torch.rand(own, 1, 32, 32, device=self._compute.device)
        labels_N = torch.zeros(own, dtype=torch.int64, device=self._compute.device)
        whole = None if self._workers.alone else Whole(batch, batch)
        stop = StopRequest()
        for step in range(steps + 1):
            if step == 1:
                started = self._now()
            self._workers.stopping(stop)
            with self._twin.apart() if apart else contextlib.nullcontext():
                train_step(
                    *(self._twin, self._optimizer, self._scaler, images_NCHW, labels_N),
                    class_weights_K=None,
                    label_smoothing=0.0,
                    whole=whole,
                    workers=self._workers,
                )
        return (self._now() - started) / steps

    def asking(self, times: int) -> float:
        """Return the seconds it takes to agree on whether to stop."""
        stop, started = StopRequest(), self._now()
        for _ in range(times):
            self._workers.stopping(stop)
        return (self._now() - started) / times

    def summing(self, times: int) -> float:
        """Return the seconds it takes to sum as many bytes as there are gradients, in one piece."""
        values = torch.zeros(self.gradient_bytes, dtype=torch.uint8, device=self._compute.device)
        values = values.view(self._compute.dtype)
        self._workers.sum(values)
        started = self._now()
        for _ in range(times):
            self._workers.sum(values)
        return (self._now() - started) / times

    def _now(self) -> float:
        if self._compute.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def work(place: dict[str, str], questions: Connection) -> None:
    """Be a worker of a team: answer questions until there are no more."""
    os.environ |= place
    with joined(os.environ, StopRequest()) as workers:
        worker = Worker(workers)
        with contextlib.suppress(EOFError):
            while True:
                name, *arguments = questions.recv()
                questions.send(getattr(worker, name)(*arguments))


class Team:
    """Workers of which all do the same; the first one's answer counts."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["alexmri.training.estimate"])  # torch is imported once
        self._members = []
        for place in places([size], meeting_on_one_host()):
            own, theirs = context.Pipe()
            process = context.Process(target=work, args=(place, theirs))
            process.start()
            theirs.close()
            self._members.append((process, own))

    def ask(self, name: str, *arguments: object) -> float:
        for _, member in self._members:
            member.send([name, *arguments])
        return float([member.recv() for _, member in self._members][0])

    def dismiss(self) -> None:
        for _, member in self._members:
            member.close()
        for process, _ in self._members:
            process.join()


def measure(batches: list[int], rounds: int) -> dict[str, Any]:
    teams = {size: Team(size) for size in TEAMS}
    try:
        seconds: dict[str, dict[str, list[float]]] = {}
        for number in range(1, rounds + 1):
            for batch in batches:
                steps = max(1, 1024 // batch)
                row = seconds.setdefault(str(batch), {})
                for size, team in teams.items():
                    row.setdefault(f"{size}", []).append(team.ask("steps", batch, steps, False))
                row.setdefault("2_apart", []).append(teams[2].ask("steps", batch, steps, True))
                shown = ", ".join(f"{name} {values[-1]:.3f}" for name, values in row.items())
                print(f"round {number}/{rounds}, batch {batch}, s by workers: {shown}", flush=True)
        sum_seconds = {size: team.ask("summing", 3) for size, team in teams.items() if size > 1}
        ask_seconds = {size: team.ask("asking", 200) for size, team in teams.items()}
    finally:
        for team in teams.values():
            team.dismiss()
    return {
        "cores": cpu_cores(),
        "oversubscribed": [size for size in TEAMS if size > cpu_cores()],
        "seconds_per_step": {
            batch: {name: statistics.median(values) for name, values in row.items()}
            for batch, row in seconds.items()
        },
        "strong": {
            batch: {size: _ratio(row["1"], row[str(size)]) for size in TEAMS[1:]}
            for batch, row in seconds.items()
        },
        "weak": {
            batch: _ratio(seconds[batch]["1"], seconds[str(2 * int(batch))]["2"]) * 2
            for batch in seconds
            if str(2 * int(batch)) in seconds
        },
        "communication_share": {
            batch: 1 - _ratio(row["2_apart"], row["2"]) for batch, row in seconds.items()
        },
        "summing_seconds": sum_seconds,
        "agreeing_seconds": ask_seconds,
        "runs": seconds,
    }


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256, 512, 1024])
    options = parser.parse_args()
    ask_for_large_pages()
    compute = choose_compute("auto")
    document = {
        **measure(options.batches, options.rounds),
        "machine": machine_document(compute.device, compute.precision),
    }
    print(json.dumps({k: v for k, v in document.items() if k != "runs"}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
