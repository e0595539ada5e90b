"""What a served answer must cost: HTTP, decoding and the batched forward pass, each alone.

A cost is CPU-seconds per request. Their sum, and the cores that are left beside the client, give
the most that a server made of these parts could answer; nothing in it stands for handing a request
from thread to thread, for waiting, or for what the parts do to each other's caches.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.serve_model import forward
from servers import Payload, noop, running

from alexmri.contract.resources import cpu_cores
from alexmri.model.predictor import Predictor

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def costs(
    bundle: Path, payload: Payload, *, answer_bytes: int, connections: int, seconds: float
) -> dict[str, Any]:
    """Return `http`, `decode` and `forward` in milliseconds of one core, and what they rest on.

    `http`: a POST of the payload to the same gunicorn, whose application reads it and answers
    `answer_bytes` constant bytes. `decode`: the bundle's decoder. `forward`: an image's share of
    the batch size at which that is least, by one thread; `forward_all_cores` the same with every
    core working on one batch, which says what cores take from each other.
    """
    with running(noop, {}, bundle, payload, answer_bytes=answer_bytes) as server:
        load = {"connections": connections, "warmup": seconds / 4, "seconds": seconds}
        http = server.load(payload.job(server.port, **load))
    predictor = Predictor.load(bundle)
    pixels = predictor.pixels(payload.body)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    decode = cpu_ms(lambda: predictor.pixels(payload.body), seconds / 2)
    one_thread = forward_ms(predictor, pixels, seconds / 4)
    torch.set_num_threads(cpu_cores())
    all_threads = forward_ms(predictor, pixels, seconds / 4)
    torch.set_num_threads(threads)
    return {
        "http": http["server_cpu_ms_per_answer"],
        "decode": decode,
        "forward": min(one_thread.values()),
        "forward_all_cores": min(all_threads.values()),
        "forward_by_batch": {str(size): each for size, each in one_thread.items()},
        "http_throughput": http["throughput"],
        "http_client_cores": http["client_cores"],
    }


def ceiling(cost: dict[str, Any], cores: float) -> float:
    """Return requests per second that `cores` could answer."""
    return cores * 1e3 / float(cost["http"] + cost["decode"] + cost["forward"])


def forward_ms(predictor: Predictor, pixels: Any, seconds: float) -> dict[int, float]:
    """Return CPU-milliseconds per image by batch size."""
    result: dict[int, float] = {}
    for size in BATCHES:
        batch_NCHW = np.repeat(pixels[None], size, axis=0)
        each = cpu_ms(partial(forward, predictor, batch_NCHW), seconds)
        result[size] = each / size
    return result


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
