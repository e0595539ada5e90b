"""Measure how fast a model is served: this server beside LitServe, FastAPI, Flask and its ceiling.

    python bench/serve.py --bundle DIR --image FILE --json FILE [--quick]

Needs `wrk` (a Debian package). Everyone gets the same model (`DIR`), the same image as PNG and the
same client, and is started anew in each of three rounds. Ours runs as `container/serve` does by
default; for every peer (bench/peers/serve_*.py) the best settings are searched first, for 1 and for
64 connections separately.

`over_ceiling` is our throughput at 64 connections over cores / (http + decode + forward), each cost
in CPU-seconds per request and measured alone, in the same round, since machines change their speed;
the cores that count are those the client leaves.
`over_ceiling_all_cores` takes nothing away. `over_NAME` is throughput at 64 over that peer's,
`p50_over_best_peer_at_1` our median latency at one connection over the least of a peer. All are
medians of the rounds' ratios. `ready` compares the first /ping with `import torch`. `overload` is a
minute of arrivals at three times capacity, `drain` a SIGTERM with 64 requests in flight. `--quick`
tests the bench, not a server.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import ratio, summary
from overload import drain, overload
from PIL import Image
from server import BENCH, OURS, PEERS_INSTALLED, running

from alexmri.contract.resources import cpu_cores
from alexmri.model.forward import choose_compute
from alexmri.model.predictor import Predictor, ranked
from alexmri.training.provenance import machine_document

Seen = dict[str, Any]
Knobs = dict[str, Sequence[Any]]

REQUIREMENTS = BENCH.parent / "requirements" / "bench.txt"
CONCURRENCY = (1, 16, 64)
FEWEST, MOST = CONCURRENCY[0], CONCURRENCY[-1]
WORKERS = tuple(dict.fromkeys((cpu_cores(), 1)))
LITSERVE = "{python} {bench}/peers/serve_litserve.py"
LITSERVE_KNOBS: Knobs = {"workers": WORKERS, "fast_queue": (False, True), "api_servers": (1, 2)}
BATCHES: Knobs = {"batch": (64, 16), "batch_timeout": (0.002, 0.01, 0.0), "workers": WORKERS[::-1]}
# The settings searched for each server, the first of each to start with.
CONTENDERS: dict[str, tuple[str, Knobs]] = {
    "ours": (OURS, {}),
    "litserve_batched": (LITSERVE, LITSERVE_KNOBS | BATCHES),
    "litserve_unbatched": (LITSERVE, {**LITSERVE_KNOBS, "batch": (1,), "batch_timeout": (0.0,)}),
    "fastapi": (
        "{python} -m uvicorn --app-dir {bench}/peers --port {port} --workers {workers}"
        " --no-access-log --log-level warning serve_fastapi:app",
        {"workers": WORKERS, "thread_pool": (False, True)},
    ),
    "flask": (
        "{python} -m gunicorn --worker-class gthread --chdir {bench}/peers --bind 127.0.0.1:{port}"
        " --workers {workers} --threads {request_threads} --keep-alive 75 --no-control-socket"
        " serve_flask:app",
        {"workers": WORKERS, "request_threads": (8, 32)},
    ),
}
# The same gunicorn in front of an application that does nothing.
NOOP = (
    "{python} -m gunicorn --config python:alexmri.serving.gunicorn_config --chdir {bench}/peers"
    " serve_noop:app"
)
FIGURES = ("throughput", "p50_ms", "p99_ms", "errors", "memory_mib", "client_cores", "server_cores")
# Of a probability: float32 in batches of another size, or bf16, differs by less.
TOLERANCE = 0.02
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often and how long everything is measured; seconds."""

    rounds: int = 3
    search: int = 1
    """0: none."""
    load: int = 2
    costs: float = 2.0
    full_load: int = 6
    overload: int = 60


QUICK = Effort(rounds=1, search=0, load=2, costs=0.5, full_load=1, overload=3)


def install_peers() -> None:
    """Put the peers into bench/.peers, once for each requirements/bench.txt."""
    stamp, wanted = PEERS_INSTALLED / "requirements.txt", REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", PEERS_INSTALLED, "-r", REQUIREMENTS], check=True)
        stamp.write_text(wanted, encoding="utf-8")


@dataclass
class Comparison:
    """What everyone gets: a model directory, a slice as PNG, and the time to be measured."""

    bundle: Path
    image: Path
    effort: Effort
    answer_bytes: int = 0

    def measure(
        self, name: str, settings: Seen, at: Sequence[int], seconds: int
    ) -> dict[int, Seen]:
        """Start a server once; return what `wrk` saw, by number of connections."""
        found = {}
        with running(CONTENDERS[name][0], self.bundle, settings) as server:
            answer = server.wait_for("POST", "/invocations", self.image.read_bytes())
            self.check(name, answer)
            if name == "ours":
                self.answer_bytes = len(answer)
            for connections in at:
                server.load(self.image, connections=connections, seconds=1)  # the warm-up
                # wrk leaves without its last answers: this one comes after them.
                server.wait_for("POST", "/invocations", self.image.read_bytes())
                load = server.load(self.image, connections=connections, seconds=seconds)
                found[connections] = load | {"memory_mib": server.memory_mib()}
        return found

    def check(self, name: str, answer: bytes) -> None:
        """Raise where an answer is not the model's: it would be another race."""
        document = json.loads(answer)
        prediction = document["predictions"][0] if "predictions" in document else document
        predictor = Predictor.load(self.bundle)
        pixels_NCHW = predictor.pixels(self.image)[None]
        (row_K,) = predictor.predict(pixels_NCHW).probabilities_NK
        for label, expected in ranked(predictor.bundle.classes, row_K).items():
            if abs(prediction["probabilities"][label] - expected) > TOLERANCE:
                raise RuntimeError(f"{name} answers {prediction}; the model says {expected}")


def search(comparison: Comparison, name: str) -> tuple[dict[int, Seen], list[Seen]]:
    """Return a server's settings for each number of connections, and all that were tried.

    One knob after the other, from the best found so far by throughput at the most connections.
    For the fewest connections the one with the least latency among all tried counts.
    """
    knobs = CONTENDERS[name][1]
    first = {knob: values[0] for knob, values in knobs.items()}
    if not knobs or not comparison.effort.search:
        return dict.fromkeys(CONCURRENCY, first), []
    tried: list[Seen] = []

    def attempt(settings: Seen) -> None:
        at = comparison.measure(name, settings, (FEWEST, MOST), comparison.effort.search)
        throughput, p50_ms = at[MOST]["throughput"], at[FEWEST]["p50_ms"]
        tried.append({"settings": settings, "throughput": throughput, "p50_ms_at_1": p50_ms})
        say(f"search {name} {settings}: {throughput:.0f}/s")

    attempt(first)
    for knob, values in knobs.items():
        for value in values[1:]:
            best = max(tried, key=lambda each: each["throughput"])["settings"]
            try:
                attempt({**best, knob: value})
            except RuntimeError as error:
                say(f"search {name} {knob}={value}: {error}")
    quickest = min(tried, key=lambda each: each["p50_ms_at_1"])["settings"]
    throughput = max(tried, key=lambda each: each["throughput"])["settings"]
    return {**dict.fromkeys(CONCURRENCY, throughput), FEWEST: quickest}, tried


def compare(comparison: Comparison) -> Seen:
    """Measure all servers, and what their parts cost, in turns; return ratios and medians."""
    settings, searched = {}, {}
    for name in CONTENDERS:
        settings[name], searched[name] = search(comparison, name)
    rounds: dict[str, dict[int, list[Seen]]] = {
        name: {connections: [] for connections in CONCURRENCY} for name in CONTENDERS
    }
    alone: list[Seen] = []
    for number in range(1, comparison.effort.rounds + 1):
        for name, runs in rounds.items():
            for wanted, at in groupby(CONCURRENCY, key=settings[name].__getitem__):
                seconds = comparison.effort.load
                for connections, seen in comparison.measure(name, wanted, [*at], seconds).items():
                    runs[connections].append(seen)
        alone.append(costs(comparison))
        shown = ", ".join(f"{n} {runs[MOST][-1]['throughput']:.0f}" for n, runs in rounds.items())
        say(f"round {number}/{comparison.effort.rounds}, answers/s at {MOST}: {shown}")

    def column(name: str, connections: int, figure: str) -> list[float]:
        return [seen[figure] for seen in rounds[name][connections]]

    contenders: dict[str, dict[str, Seen]] = {
        name: {
            str(connections): {
                "settings": settings[name][connections],
                **{f: statistics.median(column(name, connections, f)) for f in FIGURES},
                "throughput_runs": summary(column(name, connections, "throughput")),
            }
            for connections in CONCURRENCY
        }
        for name in CONTENDERS
    }
    peers = [name for name in CONTENDERS if name != "ours"]
    ours, p50s = column("ours", MOST, "throughput"), column("ours", FEWEST, "p50_ms")
    quickest = min(peers, key=lambda name: contenders[name][str(FEWEST)]["p50_ms"])
    return {
        **{f"over_{peer}": ratio(ours, column(peer, MOST, "throughput")) for peer in peers},
        "p50_over_best_peer_at_1": ratio(p50s, column(quickest, FEWEST, "p50_ms")),
        "best_peer_at_1": quickest,
        **beside_ceiling(ours, column("ours", MOST, "client_cores"), alone),
        "contenders": contenders,
        "searched": searched,
        "rounds": rounds,
    }


def costs(comparison: Comparison) -> Seen:
    """Return what HTTP, decoding and the forward pass take, each alone: ms of one core.

    `forward` is an image's share of the batch size at which that is least, by one thread;
    `forward_all_cores` the same with every core on one batch.
    """
    seconds = comparison.effort.costs
    with running(NOOP, comparison.bundle, {"answer_bytes": comparison.answer_bytes}) as server:
        server.wait_for("POST", "/invocations", comparison.image.read_bytes())
        http = server.load(comparison.image, connections=MOST, seconds=max(1, round(seconds)))
    predictor = Predictor.load(comparison.bundle)
    body = comparison.image.read_bytes()
    pixels_CHW = predictor.pixels(body)
    threads = torch.get_num_threads()

    def forward_ms(cores: int) -> dict[str, float]:
        torch.set_num_threads(cores)
        by_batch = {}
        for size in BATCH_SIZES:
            batch_NCHW = np.repeat(pixels_CHW[None], size, axis=0)
            alone = cpu_ms(lambda batch=batch_NCHW: predictor.predict(batch), seconds / 4)  # type: ignore[misc]
            by_batch[str(size)] = alone / size
        return by_batch

    forward, all_cores = forward_ms(1), forward_ms(cpu_cores())
    torch.set_num_threads(threads)
    return {
        "http": http["server_cpu_ms_per_answer"],
        "decode": cpu_ms(lambda: predictor.pixels(body), seconds / 2),
        "forward": min(forward.values()),
        "forward_all_cores": min(all_cores.values()),
        "forward_by_batch": forward,
        "http_throughput": http["throughput"],
        "http_client_cores": http["client_cores"],
    }


def beside_ceiling(
    throughput: Sequence[float], client_cores: Sequence[float], alone: Sequence[Seen]
) -> Seen:
    """Return our throughput over the ceiling of its round, and what `costs` found; see above."""
    cores = cpu_cores()
    limits = [cores * 1e3 / (cost["http"] + cost["decode"] + cost["forward"]) for cost in alone]
    left = [(cores - used) / cores for used in client_cores]
    return {
        "over_ceiling": ratio(throughput, [a * b for a, b in zip(limits, left, strict=True)]),
        "over_ceiling_all_cores": ratio(throughput, limits),
        "cores": cores,
        "ceiling_all_cores": statistics.median(limits),
        "cost_ms": {
            name: statistics.median(cost[name] for cost in alone)
            for name, value in alone[0].items()
            if isinstance(value, float)
        },
        "cost_ms_by_round": alone,
    }


def cpu_ms(work: Callable[[], object], seconds: float) -> float:
    """Return the median CPU-milliseconds of `work`, repeated for `seconds` after a warm-up."""
    work()
    runs: list[float] = []
    until = time.perf_counter() + seconds
    while len(runs) < 5 or time.perf_counter() < until:
        before = time.process_time()
        work()
        runs.append(time.process_time() - before)
    return statistics.median(runs) * 1e3


def ready(comparison: Comparison) -> Seen:
    """Return the seconds of `import torch` and to the first ping, one after the other in turns."""
    imports, starts = [], []
    for _ in range(comparison.effort.rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        imports.append(time.perf_counter() - began)
        began = time.perf_counter()
        with running(OURS, comparison.bundle, {}) as server:
            server.wait_for("GET", "/ping")
            starts.append(time.perf_counter() - began)
    imported = statistics.median(imports)
    allowed = 1.5 * imported + 2.0
    return {"import_torch_s": imported, "ready_s": statistics.median(starts), "allowed_s": allowed}


def table(contenders: dict[str, Any]) -> str:
    """Return the medians as lines of text."""
    lines = [f"{'':20}{'at':>4}{'answers/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}{'MiB':>7}"]
    for name, by_connections in contenders.items():
        for at, row in by_connections.items():
            lines.append(
                f"{name:20}{at:>4}{row['throughput']:11.0f}{row['p50_ms']:9.2f}"
                f"{row['p99_ms']:9.2f}{row['errors']:8.0f}{row['memory_mib']:7.0f}"
            )
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a model directory")
    parser.add_argument("--image", type=Path, required=True, help="the slice everybody is sent")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="a minute: test the bench itself")
    options = parser.parse_args()
    began = time.perf_counter()
    say(f"This takes about {'a minute' if options.quick else 'ten minutes'} on two idle cores.")
    if not shutil.which("wrk"):
        raise SystemExit("bench/serve.py needs wrk, which is not on PATH; apt-get install wrk")
    install_peers()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        with Image.open(options.image) as opened:
            opened.save(image)
        comparison = Comparison(options.bundle, image, QUICK if options.quick else Effort())
        document = compare(comparison)
        document["ready"] = ready(comparison)
        with running(OURS, comparison.bundle, {}) as server:
            server.wait_for("POST", "/invocations", image.read_bytes())
            full, seconds = comparison.effort.full_load, comparison.effort.overload
            load = {"connections": MOST, "full": full, "seconds": seconds}
            document["overload"] = overload(server, image, **load)
            document["drain"] = drain(server, image, connections=MOST)
        document["payload_bytes"] = image.stat().st_size
    compute = choose_compute("auto")
    document |= {
        "quick": options.quick,
        "seconds": time.perf_counter() - began,
        "machine": machine_document(compute.device, compute.precision),
    }
    say(table(document["contenders"]))
    say(json.dumps({k: v for k, v in document.items() if isinstance(v, float)}, indent=2))
    for name in ("ready", "overload", "drain"):
        say(f"{name}: " + json.dumps({k: v for k, v in document[name].items() if k != "full_load"}))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
