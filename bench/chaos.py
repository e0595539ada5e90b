"""Kill a training again and again, resume it, and compare the end with a run nobody touched.

    python bench/chaos.py [--kills 200] [--data DIR] [--json FILE] [--epochs 6] [--seed 0]

The real `train` of container/ is killed by SIGKILL at random moments, or in the middle of writing a
file; now and then the newest checkpoint is damaged too. After every 30 kills a run may come to its
end. `identical` says whether model and figures are, byte for byte, those of the untouched run.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from alexmri.data.phantom import write_demo_data
from alexmri.files import write_json
from alexmri.model.forward import choose_compute
from alexmri.training.checkpoint import checkpoints_in
from alexmri.training.provenance import machine_document

TRAIN = Path(__file__).parents[1] / "container" / "train"
# Its sitecustomize.py kills a process of the training in the middle of a write.
KILLER = Path(__file__).with_name("kill_in_write")
KILLS_PER_ROUND = 30
# The longest a run lives before it is killed, counted from when its steps begin.
LIFE_SECONDS = 3.0
SHARE_IN_WRITE, SHARE_DAMAGED = 0.3, 0.1
# Files in whose writing a kill is forced, before or after the name appears. Of the checkpoints
# there are many in a run; of the others one, at its beginning or its end.
CHECKPOINTS = ("step-*.safetensors", "step-*.json")
WRITES = (*CHECKPOINTS, "model.safetensors", "model.json", "run.json")


class Job:
    """A /opt/ml tree and the program that trains in it."""

    def __init__(self, root: Path, data: Path, epochs: int) -> None:
        self.root = root
        (root / "input" / "data").mkdir(parents=True)
        (root / "input" / "data" / "training").symlink_to(data.resolve())
        self._environment = os.environ | {
            "SAGEMAKER_BASE_DIR": str(root),
            "ALEXMRI_CACHE_DIR": str(root / "cache"),
            "ALEXMRI_EPOCHS": str(epochs),
            "ALEXMRI_CHECKPOINT_EVERY_SECONDS": "0.5",
            "ALEXMRI_STOP_GRACE_SECONDS": "0",
            "ALEXMRI_WANDB_MODE": "disabled",
        }

    def start(self, dying_at: str = "") -> "subprocess.Popen[str]":
        """Start; the process that comes to the write PATTERN:COUNT:before|after dies there."""
        path = os.pathsep.join(filter(None, (str(KILLER), os.environ.get("PYTHONPATH"))))
        killer = {"PYTHONPATH": path, "KILL_IN_WRITE": dying_at} if dying_at else {}
        return subprocess.Popen(
            [sys.executable, TRAIN],
            env=self._environment | killer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self) -> tuple[float, float]:
        """Train to the end; return after how many seconds the steps began, and it was done."""
        began = ready = time.monotonic()
        process = self.start()
        assert process.stdout
        printed = ""
        for line in process.stdout:
            printed += line
            if " epochs of " in line:
                ready = time.monotonic()
        if process.wait() != 0:
            raise SystemExit(f"the training failed:\n{printed}")
        return ready - began, time.monotonic() - began

    def result(self) -> dict[str, Any]:
        """Everything that equal runs have in common: all but how fast they were."""
        results = self.root / "output" / "data"
        rows = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
        whole = [*(self.root / "model").iterdir(), results / "evaluation.json"]
        return {
            **{path.name: path.read_bytes() for path in [*whole, results / "split.json"]},
            "metrics.jsonl": [row | {"images_per_second": None} for row in rows],
        }


def kill_often(
    job: Job, kills: int, life_seconds: float, tally: Counter[str], chance: random.Random
) -> list[float]:
    """Kill `job` so often, in a write or at most `life_seconds` after its start; return lives."""
    lives: list[float] = []
    while len(lives) < kills:
        in_write, moment = chance.random() < SHARE_IN_WRITE, chance.uniform(0.0, life_seconds)
        pattern, when = chance.choice(WRITES), chance.choice(("before", "after"))
        number = chance.randint(1, 3) if pattern in CHECKPOINTS else 1
        process = job.start(f"{pattern}:{number}:{when}" if in_write else "")
        began = time.monotonic()
        try:
            # However slow the machine: the write comes, or the run's end.
            printed = process.communicate(timeout=None if in_write else moment)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            printed = process.communicate()[0]  # ends when the worker is gone too
        if process.returncode == 0:
            break  # it came to its end before it was killed
        if process.returncode not in (-9, 137):
            raise SystemExit(f"the training failed by itself ({process.returncode}):\n{printed}")
        lives.append(time.monotonic() - began)
        tally["killed_in_write"] += in_write
        tally["resumes"] += "resuming at epoch" in printed
        if chance.random() < SHARE_DAMAGED:
            tally["checkpoints_damaged"] += damage_newest(job.root / "checkpoints", chance)
    return lives


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Say which files differ, and for metrics the first row that does."""
    others = []
    for name in sorted(expected.keys() | found.keys()):
        one, other = expected.get(name), found.get(name)
        if isinstance(one, list) and isinstance(other, list):
            rows = [pair for pair in zip_longest(one, other) if pair[0] != pair[1]]
            others += [f"{name}: {rows[0][0]} became {rows[0][1]}"] if rows else []
        elif one != other:
            others.append(f"{name} differs")
    return others


def damage_newest(checkpoints: Path, chance: random.Random) -> bool:
    """Flip a bit of the newest checkpoint, or cut it short, where another one is behind it."""
    json_files = checkpoints_in(checkpoints)
    if len(json_files) < 2:
        return False
    path = json_files[-1].with_suffix(chance.choice((".json", ".safetensors")))
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if chance.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--data", type=Path, help="folder of class folders (default: demo data)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compute, chance = choose_compute("auto"), random.Random(options.seed)  # noqa: S311
    lives: list[float] = []
    tally, rounds, identical = Counter[str](), 0, True
    with tempfile.TemporaryDirectory(prefix="alexmri-chaos-") as folder:
        data = options.data or Path(folder) / "demo"
        if options.data is None:
            write_demo_data(data, subjects={"MildDemented": 5, "NonDemented": 5}, slices=16)
        untouched = Job(Path(folder) / "untouched", data, options.epochs)
        ready, seconds = untouched.finish()
        expected = untouched.result()
        print(f"the untouched run took {seconds:.1f} s, its start {ready:.1f} s", flush=True)
        while len(lives) < options.kills:
            job = Job(Path(folder) / f"round-{rounds}", data, options.epochs)
            wanted = min(KILLS_PER_ROUND, options.kills - len(lives))
            killed = kill_often(job, wanted, min(seconds, ready + LIFE_SECONDS), tally, chance)
            job.finish()
            lives += killed
            rounds += 1
            others = differences(expected, job.result())
            identical = identical and not others
            ending = "; ".join(["OTHER BYTES", *others]) if others else "the same bytes"
            print(f"round {rounds}: {len(killed)} kills, then {ending}", flush=True)
    figures = {
        "kills": len(lives),
        "identical": identical,
        "resumes": tally["resumes"],
        "rounds": rounds,
        "killed_in_write": tally["killed_in_write"],
        "checkpoints_damaged": tally["checkpoints_damaged"],
        "median_life_seconds": round(statistics.median(lives), 2),
        "untouched_seconds": round(seconds, 2),
        "seed": options.seed,
        "machine": machine_document(compute.device, compute.precision),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        write_json(options.json, figures)
    raise SystemExit(0 if identical else 1)


if __name__ == "__main__":
    main()
