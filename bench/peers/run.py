"""Run the textbook trainer and its peers, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fixture import Bench

from alexmri.contract.resources import cpu_cores

PEERS = Path(__file__).parent
INSTALLED = Path(__file__).parents[1] / ".peers"
PEER_STEPS = 10


# --- textbook and peers


def ask(bench: Bench, name: str, **wishes: Any) -> dict[str, float]:
    """Run a peer in a process of its own; see bench/peers/job.py.

    Raises:
        RuntimeError: the peer failed; with its last line.
    """
    folder, number = bench.dataset.folder, bench.dataset.classes.index
    job = {
        "images": [
            (str(image.path), number(image.label), split)
            for image, split in zip(folder.images, bench.dataset.split.assigned, strict=True)
        ],
        "classes": bench.classes,
        "settings": bench.settings.model_dump(mode="json"),
        "threads": cpu_cores(),
        "steps": PEER_STEPS,
        **wishes,
    }
    request = bench.scratch / "job.json"
    request.write_text(json.dumps(job))
    path = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(INSTALLED)])
    done = subprocess.run(
        [sys.executable, PEERS / f"{name}.py", request],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode:
        last_words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{name}: {last_words[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def speed_of(bench: Bench, name: str, **wishes: Any) -> float:
    return ask(bench, name, **wishes)["images_per_second"]


def best_workers(bench: Bench, precision: str) -> tuple[int, dict[str, float]]:
    """Return for how many DataLoader workers the textbook is fastest, and the three speeds."""
    speeds = {w: speed_of(bench, "textbook", workers=w, precision=precision) for w in (0, 1, 2)}
    return max(speeds, key=lambda w: speeds[w]), {str(w): s for w, s in speeds.items()}
