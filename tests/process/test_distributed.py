"""container/train with several workers: one model, one checkpoint, one end, and its cause."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Tree, grow_tree
from .test_launcher import wait_for_line

# Seconds for a run of several processes on a machine that has other things to do.
PATIENCE = 600
# The line of the first epoch; the last line of all repeats one, for the model that was saved.
FIRST_EPOCH = r"^epoch=1; .*images_per_second=\d+;$"
# What is promised when a worker dies.
DEATH_SECONDS = 60
SETTINGS = (
    *("--epochs", "3", "--precision", "fp32", "--class-weights", "balanced"),
    *("--wandb-mode", "disabled"),
)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def worker_of_rank(process: "subprocess.Popen[str]", rank: int) -> int:
    """Return the process that has this rank among the descendants of process 1."""
    for pid in descendants(process.pid):
        if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0"):
            return pid
    raise AssertionError(f"there is no worker of rank {rank}")


def train(tree: Tree, workers: int, *more: str) -> "subprocess.Popen[str]":
    return tree.start("train", "--workers-per-host", str(workers), *SETTINGS, *more)


def to_the_end(process: "subprocess.Popen[str]", code: int = 0) -> str:
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code, printed
    return printed


def epochs_of(tree: Tree) -> list[int]:
    lines = (tree.root / "output" / "data" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_workers_train_one_model_and_measure_every_image_once(tree: Tree) -> None:
    printed = to_the_end(train(tree, 2))
    assert len(re.findall(FIRST_EPOCH, printed, re.MULTILINE)) == 1
    assert epochs_of(tree) == [1, 2, 3]
    results = tree.root / "output" / "data"
    assert read(results / "run.json")["workers"] == 2
    rows = (results / "predictions.csv").read_text().splitlines()[1:]
    tested = [each for each in read(results / "split.json")["images"] if each["split"] == "test"]
    assert sorted(row.split(",")[0] for row in rows) == sorted(each["path"] for each in tested)
    assert (tree.root / "model" / "model.json").is_file()


def test_a_stop_saves_one_checkpoint_and_any_number_of_workers_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tree = grow_tree(tmp_path_factory.mktemp("two") / "ml")
    process = train(tree, 2, "--epochs", "300")
    wait_for_line(process, "epoch=1;")
    process.send_signal(signal.SIGTERM)
    printed = to_the_end(process)
    assert printed.count("is saved") == printed.count("SIGTERM: ") == 1, printed
    (document,) = (tree.root / "checkpoints").glob("*.json")
    assert read(document)["progress"]["epoch"] >= 2
    assert (tree.root / "model" / "model.json").is_file()
    assert not (tree.root / "output" / "failure").exists()
    for workers in (2, 1):
        process = train(tree, workers, "--epochs", "300")
        printed = wait_for_line(process, "epoch=")
        assert "resuming at epoch" in printed
        process.send_signal(signal.SIGTERM)
        to_the_end(process)
    assert epochs_of(tree) == list(range(1, len(epochs_of(tree)) + 1))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_dies_ends_all_with_the_cause(tree: Tree, rank: int) -> None:
    process = train(tree, 2, "--epochs", "300")
    wait_for_line(process, "epoch=1;")
    workers = [worker_of_rank(process, each) for each in (0, 1)]
    os.kill(workers[rank], signal.SIGKILL)
    killed = time.monotonic()
    to_the_end(process, code=137)
    assert time.monotonic() - killed < DEATH_SECONDS
    assert tree.failure.startswith(f"rank {rank} on algo-1: the training was killed by signal 9")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_process_1_that_is_killed_leaves_no_worker_behind(tree: Tree) -> None:
    process = train(tree, 2, "--epochs", "300")
    wait_for_line(process, "epoch=1;")
    workers = [worker_of_rank(process, each) for each in (0, 1)]
    process.kill()
    process.communicate(timeout=PATIENCE)  # returns when nobody holds the pipe any more
    deadline = time.monotonic() + DEATH_SECONDS
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlives process 1"


def test_a_mistake_is_told_once(tree: Tree) -> None:
    image = next((tree.root / "input" / "data" / "training" / "NonDemented").iterdir())
    image.write_bytes(image.read_bytes()[:700])
    printed = to_the_end(train(tree, 2), code=2)
    assert "cannot be read" in tree.failure
    assert printed.count("error: ") == 1, printed


def test_the_command_line_trains_with_several_workers_too(tree: Tree, tmp_path: Path) -> None:
    command = [Path(shutil.which("alexmri", path=tree.environment()["PATH"]) or ""), "train"]
    data, out = tree.root / "input" / "data" / "training", tmp_path / "out"
    result = subprocess.run(
        [*command, "--data", data, "--out", out, "--epochs", "1", "--workers-per-host", "2"],
        env=tree.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(FIRST_EPOCH, result.stdout, re.MULTILINE)) == 1
    assert (out / "model" / "model.json").is_file()


@pytest.mark.parametrize("started", ["container/train", "-m alexmri.training.worker"])
def test_under_somebody_elses_torchrun_they_are_workers_of_one_job(
    tree: Tree, started: str
) -> None:
    """As SDK 3 starts a job with `Torchrun()`; two trainings once fought for the folder."""
    repository = Path(__file__).parents[2]
    what = [repository / started] if started.startswith("container") else started.split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = tree.spawn(*torchrun, "--nproc-per-node", "2", *what, *SETTINGS, "--epochs", "1")
    printed = to_the_end(process)
    assert len(re.findall(FIRST_EPOCH, printed, re.MULTILINE)) == 1
    assert read(tree.root / "output" / "data" / "run.json")["workers"] == 2
