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
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

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
SHARE_IN_WRITE = 0.3
SHARE_DAMAGED = 0.1
# Files in whose writing a kill is forced, before or after the name appears. Of the checkpoints
# there are many in a run; of the others one, at its beginning or its end.
CHECKPOINTS = ("step-*.safetensors", "step-*.json")
WRITES = (*CHECKPOINTS, "model.safetensors", "model.json", "run.json")
# What may differ between equal runs: how fast they were.
SPEED = "images_per_second"


@dataclass
class Tally:
    """What happened to the runs."""

    kills: int = 0
    in_write: int = 0
    damaged: int = 0
    resumes: int = 0
    rounds: int = 0
    lives_seconds: list[float] = field(default_factory=list)


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

    def start(self, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, TRAIN],
            env=self._environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_dying_at(self, write: str) -> "subprocess.Popen[str]":
        """Start; the process that comes to `write` (PATTERN:COUNT:before|after) dies there."""
        path = os.pathsep.join(filter(None, (str(KILLER), os.environ.get("PYTHONPATH"))))
        return self.start(PYTHONPATH=path, KILL_IN_WRITE=write)

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

    def result(self) -> dict[str, object]:
        """Everything that equal runs have in common."""
        results = self.root / "output" / "data"
        rows = [json.loads(line) for line in (results / "metrics.jsonl").read_text().splitlines()]
        return {
            **{path.name: path.read_bytes() for path in sorted((self.root / "model").iterdir())},
            "evaluation.json": (results / "evaluation.json").read_bytes(),
            "split.json": (results / "split.json").read_bytes(),
            "metrics.jsonl": [{k: v for k, v in row.items() if k != SPEED} for row in rows],
        }


def kill_often(
    job: Job, kills: int, life_seconds: float, tally: Tally, chance: random.Random
) -> None:
    """Start and kill `job` so many times, in a write or at most `life_seconds` after its start."""
    for _ in range(kills):
        in_write = chance.random() < SHARE_IN_WRITE
        if in_write:
            pattern, when = chance.choice(WRITES), chance.choice(("before", "after"))
            number = chance.randint(1, 3) if pattern in CHECKPOINTS else 1
            process = job.start_dying_at(f"{pattern}:{number}:{when}")
            moment = None  # however slow the machine: the write comes, or the run's end
        else:
            process = job.start()
            moment = chance.uniform(0.0, life_seconds)
        began = time.monotonic()
        try:
            printed = process.communicate(timeout=moment)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            printed = process.communicate()[0]  # ends when the worker is gone too
        if process.returncode == 0:
            return  # it came to its end before it was killed
        if process.returncode not in (-9, 137):
            raise SystemExit(f"the training failed by itself ({process.returncode}):\n{printed}")
        tally.kills += 1
        tally.in_write += in_write
        tally.resumes += "resuming at epoch" in printed
        tally.lives_seconds.append(time.monotonic() - began)
        if chance.random() < SHARE_DAMAGED:
            tally.damaged += damage_newest(job.root / "checkpoints", chance)


def differences(expected: dict[str, object], found: dict[str, object]) -> list[str]:
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
    if chance.random() < 0.5:
        os.truncate(path, chance.randrange(path.stat().st_size))
        return True
    with path.open("r+b") as file:
        place = chance.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--data", type=Path, help="folder of class folders (default: demo data)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    compute = choose_compute("auto")
    chance, tally, identical = random.Random(options.seed), Tally(), True  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="alexmri-chaos-") as folder:
        data = options.data
        if data is None:
            data = Path(folder) / "demo"
            write_demo_data(data, subjects={"MildDemented": 5, "NonDemented": 5}, slices=16)
        untouched = Job(Path(folder) / "untouched", data, options.epochs)
        ready, seconds = untouched.finish()
        expected = untouched.result()
        print(
            f"the untouched run took {seconds:.1f} s, its start {ready:.1f} s of that", flush=True
        )
        while tally.kills < options.kills:
            before = tally.kills
            job = Job(Path(folder) / f"round-{tally.rounds}", data, options.epochs)
            wanted = min(KILLS_PER_ROUND, options.kills - tally.kills)
            kill_often(job, wanted, min(seconds, ready + LIFE_SECONDS), tally, chance)
            job.finish()
            tally.rounds += 1
            others = differences(expected, job.result())
            identical = identical and not others
            print(
                f"round {tally.rounds}: {tally.kills - before} kills, then"
                f" {'; '.join(['OTHER BYTES', *others]) if others else 'the same bytes'}",
                flush=True,
            )
    figures = {
        "kills": tally.kills,
        "identical": identical,
        "resumes": tally.resumes,
        "rounds": tally.rounds,
        "killed_in_write": tally.in_write,
        "checkpoints_damaged": tally.damaged,
        "median_life_seconds": round(statistics.median(tally.lives_seconds), 2),
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
