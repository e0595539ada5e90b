"""Measure how fast a model is served: this server beside LitServe, FastAPI, Flask and its ceiling.

    python bench/serve.py --bundle DIR --image FILE --json FILE [--quick]

Everyone gets the same model (`DIR`, by alexmri.model.predictor), the same picture as PNG, the same
client (bench/load.py, one process on this machine), and is started anew for each of three rounds
in which all take their turn, so that what else the machine does hits all of them. Ours runs as
`container/serve` does by default; for every peer (bench/peers/serve_*.py) the best settings are
searched first, for 1 and for 64 connections separately.

`over_ceiling` is our throughput at 64 connections over cores / (c_http + c_decode + c_forward),
each cost in CPU-seconds per request and measured alone (bench/component_costs.py). The client
shares the machine, so the cores that count are those it leaves: `over_ceiling` takes from them the
share the client had in that measurement; `over_ceiling_all_cores` takes nothing away, as if the
client were free, and so is lower. `over_NAME` is throughput at 64 over that peer's,
`p50_over_best_peer_at_1` our median latency at one connection over that of the peer with the least.
All are medians of the rounds' ratios. `overload` and `drain`: bench/overload.py. `--quick` tests
the bench, not a server.
"""

import argparse
import io
import json
import statistics
import time
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from arithmetic import summary
from component_costs import ceiling, costs
from load_requests import TOLERANCE
from overload import overload_and_drain
from peers.serve_model import forward
from PIL import Image
from servers import Contender, Payload, Settings, contenders, install_peers, running

from alexmri.contract.resources import cpu_cores
from alexmri.model.forward import choose_compute
from alexmri.model.predictor import Predictor, ranked
from alexmri.training.provenance import machine_document

Seen = dict[str, Any]

CONCURRENCY = (1, 16, 64)
FEWEST, MOST = CONCURRENCY[0], CONCURRENCY[-1]
FIGURES = ("throughput", "p50_ms", "p99_ms", "errors", "memory_mib", "client_cores", "server_cores")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long everything is measured; seconds."""

    rounds: int = 3
    # A slow peer with 64 connections needs most of a second before every one had its first answer.
    warmup: float = 1.0
    load: float = 2.25
    search: bool = True
    search_load: float = 1.5
    costs: float = 3.0
    full_load: float = 6.0
    overload: float = 60.0


QUICK = Effort(rounds=1, warmup=0.2, load=0.5, search=False, costs=0.5, full_load=1.0, overload=3.0)


class Comparison:
    """Contenders that answer the same picture with the same model, measured in turns."""

    def __init__(self, bundle: Path, payload: Payload, effort: Effort) -> None:
        self._bundle, self._payload, self._effort = bundle, payload, effort
        predictor = Predictor.load(bundle)
        probabilities_NK = forward(predictor, predictor.pixels(payload.body)[None])
        self._expected = ranked(predictor.bundle.classes, probabilities_NK[0])
        self.contenders = contenders()
        self.settings: dict[str, dict[int, Settings]] = {}
        self.searched: dict[str, list[dict[str, Any]]] = {}
        self.answer_bytes = 0
        self.runs: dict[str, dict[int, list[Seen]]] = {
            each.name: {connections: [] for connections in CONCURRENCY} for each in self.contenders
        }

    def search(self) -> None:
        """Find each contender's settings: the best by latency at the fewest connections, and the
        best by throughput at the most. One knob after the other, from the best found so far."""
        for contender in self.contenders:
            tried: list[tuple[Settings, dict[int, Seen]]] = []
            if self._effort.search and contender.knobs:
                self._try(contender, contender.first(), tried)
                for knob, values in contender.knobs.items():
                    for value in values[1:]:
                        best, _ = max(tried, key=lambda each: each[1][MOST]["throughput"])
                        self._try(contender, {**best, knob: value}, tried)
            self.searched[contender.name] = [
                {"settings": settings, "throughput": at[MOST]["throughput"], "p50_ms_at_1": p50(at)}
                for settings, at in tried
            ]
            throughput, latency = contender.first(), contender.first()
            if tried:
                throughput, _ = max(tried, key=lambda each: each[1][MOST]["throughput"])
                latency, _ = min(tried, key=lambda each: p50(each[1]))
            self.settings[contender.name] = dict.fromkeys(CONCURRENCY, throughput)
            self.settings[contender.name][FEWEST] = latency

    def round(self) -> None:
        """Measure every contender once at each number of connections."""
        for contender in self.contenders:
            settings = self.settings[contender.name]
            for wanted, at in groupby(CONCURRENCY, key=settings.__getitem__):
                found = self._measure(contender, wanted, list(at), self._effort.load)
                for connections, seen in found.items():
                    self.runs[contender.name][connections].append(seen)

    def medians(self, name: str) -> dict[str, Any]:
        return {
            str(connections): {
                "settings": self.settings[name][connections],
                **{figure: statistics.median(seen[figure] for seen in runs) for figure in FIGURES},
                "throughput_runs": summary([seen["throughput"] for seen in runs]),
            }
            for connections, runs in self.runs[name].items()
        }

    def ratio(self, above: str, below: str, figure: str, connections: int) -> float:
        """Return the median of the rounds' ratios."""
        pairs = zip(self.runs[above][connections], self.runs[below][connections], strict=True)
        return float(statistics.median(a[figure] / b[figure] for a, b in pairs))

    def _try(
        self,
        contender: Contender,
        settings: Settings,
        tried: list[tuple[Settings, dict[int, Seen]]],
    ) -> None:
        try:
            at = self._measure(contender, settings, [FEWEST, MOST], self._effort.search_load)
        except RuntimeError as error:
            if not tried:
                raise
            say(f"search {contender.name} {settings}: {error}")
            return
        tried.append((settings, at))
        say(f"search {contender.name} {settings}: {at[MOST]['throughput']:.0f}/s")

    def _measure(
        self, contender: Contender, settings: Settings, at: list[int], seconds: float
    ) -> dict[int, Seen]:
        """Start it once; return what the client saw, by number of connections."""
        found: dict[int, Seen] = {}
        with running(contender.command, settings, self._bundle, self._payload) as server:
            for connections in at:
                job = self._payload.job(
                    server.port,
                    connections=connections,
                    warmup=self._effort.warmup,
                    seconds=seconds,
                )
                seen = server.load(job)
                answer = seen.pop("answer")
                self._check(contender.name, answer)
                if contender.name == "ours":
                    self.answer_bytes = len(answer.encode())
                found[connections] = seen | {"memory_mib": server.memory_mib()}
        return found

    def _check(self, name: str, answer: str) -> None:
        """Raise where a contender's answer is not the model's: it would be another race."""
        document = json.loads(answer)
        prediction = document["predictions"][0] if "predictions" in document else document
        for label, expected in self._expected.items():
            if abs(prediction["probabilities"][label] - expected) > TOLERANCE:
                raise RuntimeError(f"{name} answers {prediction}; the model says {self._expected}")


def p50(at: dict[int, Seen]) -> float:
    """Return the median latency at the fewest connections; infinite where nothing came back."""
    return float(at[FEWEST]["p50_ms"] or "inf")


def say(line: str) -> None:
    print(line, flush=True)


def measure(bundle: Path, payload: Payload, effort: Effort) -> dict[str, Any]:
    """Return all figures."""
    comparison = Comparison(bundle, payload, effort)
    comparison.search()
    for number in range(1, effort.rounds + 1):
        comparison.round()
        shown = ", ".join(
            f"{name} {runs[MOST][-1]['throughput']:.0f}" for name, runs in comparison.runs.items()
        )
        say(f"round {number}/{effort.rounds}, answers/s at {MOST}: {shown}")
    cost = costs(
        bundle,
        payload,
        answer_bytes=comparison.answer_bytes,
        connections=MOST,
        seconds=effort.costs,
    )
    ours, *peers = (each.name for each in comparison.contenders)
    cores = cpu_cores()
    at_most = comparison.runs[ours][MOST]
    medians = {each.name: comparison.medians(each.name) for each in comparison.contenders}
    quickest = min(peers, key=lambda name: medians[name][str(FEWEST)]["p50_ms"])
    return {
        "over_ceiling": statistics.median(
            seen["throughput"] / ceiling(cost, cores - seen["client_cores"]) for seen in at_most
        ),
        "over_ceiling_all_cores": statistics.median(
            seen["throughput"] / ceiling(cost, cores) for seen in at_most
        ),
        **{f"over_{peer}": comparison.ratio(ours, peer, "throughput", MOST) for peer in peers},
        "p50_over_best_peer_at_1": comparison.ratio(ours, quickest, "p50_ms", FEWEST),
        "best_peer_at_1": quickest,
        "cores": cores,
        "ceiling_all_cores": ceiling(cost, cores),
        "cost_ms": cost,
        "contenders": medians,
        "searched": comparison.searched,
        "rounds": comparison.runs,
        **overload_and_drain(
            comparison.contenders[0],
            bundle,
            payload,
            connections=MOST,
            full_load_seconds=effort.full_load,
            overload_seconds=effort.overload,
        ),
    }


def table(document: dict[str, Any]) -> str:
    """Return the contenders' medians as lines of text."""
    lines = [f"{'':20}{'at':>4}{'answers/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}{'MiB':>7}"]
    for name, by_connections in document["contenders"].items():
        for at, row in by_connections.items():
            lines.append(
                f"{name:20}{at:>4}{row['throughput']:11.0f}{row['p50_ms']:9.2f}"
                f"{row['p99_ms']:9.2f}{row['errors']:8.0f}{row['memory_mib']:7.0f}"
            )
    return "\n".join(lines)


def as_png(path: Path) -> bytes:
    """Return the picture as PNG: a PNG as it is, anything else encoded anew."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        if picture.format == "PNG":
            return content
        encoded = io.BytesIO()
        picture.save(encoded, "PNG")
    return encoded.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a model directory")
    parser.add_argument("--image", type=Path, required=True, help="the slice everybody is sent")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="a minute: test the bench itself")
    options = parser.parse_args()
    began = time.perf_counter()
    say(f"This takes about {'a minute' if options.quick else 'ten minutes'} on two idle cores.")
    install_peers()
    payload = Payload(as_png(options.image))
    document = measure(options.bundle, payload, QUICK if options.quick else Effort())
    compute = choose_compute("auto")
    document |= {
        "quick": options.quick,
        "payload_bytes": len(payload.body),
        "seconds": time.perf_counter() - began,
        "machine": machine_document(compute.device, compute.precision),
    }
    say(table(document))
    say(json.dumps({k: v for k, v in document.items() if isinstance(v, float)}, indent=2))
    for name in ("overload", "drain"):
        say(f"{name}: " + json.dumps({k: v for k, v in document[name].items() if k != "full_load"}))
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
