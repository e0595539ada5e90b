"""container/train with several workers: the same answer, one end, checkpoints for any number.

Runs of one job that differ in nothing but the number of workers are compared in float32. Sums are
taken in another order then, and rounding differs in the seventh digit; it grows from step to step,
and a ReLU at its kink lets it jump. Over the 12 steps here TOLERANCE holds; single steps are
compared in tests/test_together.py.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .conftest import Tree, grow_tree
from .test_process_one import wait_for_line

# Seconds for a run of several processes on a machine that has other things to do.
PATIENCE = 600
TOLERANCE = 0.02  # of a loss
# What is promised when a worker dies.
DEATH_SECONDS = 15
SETTINGS = (
    *("--epochs", "3", "--precision", "fp32", "--class-weights", "balanced"),
    # Small steps, so that differences in rounding stay small.
    *("--learning-rate", "0.003", "--wandb-mode", "disabled"),
)


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """Return the processes of the workers, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found[next(v for v in environment if v.startswith("RANK="))] = child
    return [found[name] for name in sorted(found)]


def train(tree: Tree, workers: int, *more: str) -> "subprocess.Popen[str]":
    return tree.start("train", "--workers-per-host", str(workers), *SETTINGS, *more)


def to_the_end(tree: Tree, workers: int) -> list[dict[str, Any]]:
    process = train(tree, workers)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    return rows_of(tree)


def stopped_after(tree: Tree, workers: int, epoch: int) -> None:
    """Train until `epoch` is done, then stop: each worker at another moment, and in a hurry."""
    process = train(tree, workers)
    wait_for_line(process, f"epoch={epoch};")
    for worker in reversed(workers_of(process)):
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # the second one for each of them
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, printed
    assert printed.count("is saved") == 1, printed
    assert not (tree.root / "output" / "failure").exists()


def copy_of(tree: Tree, name: str) -> Tree:
    """Return a tree of its own with all that is in `tree`, under the same name of its folder."""
    root = tree.root.parent.with_name(f"{tree.root.parent.name}-{name}") / tree.root.name
    shutil.copytree(tree.root, root)
    return Tree(root)


def rows_of(tree: Tree) -> list[dict[str, Any]]:
    lines = (tree.root / "output" / "data" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def agree(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [row["epoch"] for row in found] == [row["epoch"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        for name in ("train_loss", "val_loss"):
            assert one[name] == pytest.approx(other[name], rel=TOLERANCE), (name, one, other)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A run of two workers to its end; tests leave it as it is."""
    tree = grow_tree(tmp_path_factory.mktemp("two") / "ml")
    to_the_end(tree, 2)
    return tree


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_comes_to_the_same(
    tree: Tree, uninterrupted: Tree, workers: int
) -> None:
    agree(to_the_end(tree, workers), rows_of(uninterrupted))
    figures = [
        json.loads((each.root / "output" / "data" / "evaluation.json").read_text())
        for each in (tree, uninterrupted)
    ]
    loss, wanted = (figure["validation"]["log_loss"]["value"] for figure in figures)
    assert loss == pytest.approx(wanted, rel=TOLERANCE)
    # Each test image was measured, and once.
    rows, all_rows = (
        (each.root / "output" / "data" / "predictions.csv").read_text().splitlines()
        for each in (tree, uninterrupted)
    )
    assert [row.split(",")[0] for row in rows] == [row.split(",")[0] for row in all_rows]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A run of two workers that was stopped after its first epoch; tests leave it as it is."""
    tree = grow_tree(tmp_path_factory.mktemp("stopped") / "ml")
    stopped_after(tree, 2, epoch=1)
    return tree


def test_a_stop_that_comes_at_different_times_saves_one_checkpoint(interrupted: Tree) -> None:
    (document,) = (interrupted.root / "checkpoints").glob("*.json")
    progress = json.loads(document.read_text())["progress"]
    assert progress["epoch"] == 2


def test_the_same_number_of_workers_resumes_bit_for_bit(
    interrupted: Tree, uninterrupted: Tree
) -> None:
    tree = copy_of(interrupted, "same")
    assert to_the_end(tree, 2) == rows_of(uninterrupted)
    weights = [
        load_file(each.root / "model" / "model.safetensors") for each in (tree, uninterrupted)
    ]
    assert all((weights[0][name] == value).all() for name, value in weights[1].items())


def test_another_number_of_workers_resumes_too(interrupted: Tree, uninterrupted: Tree) -> None:
    tree = copy_of(interrupted, "other")
    stopped_after(tree, 1, epoch=2)
    agree(to_the_end(tree, 3), rows_of(uninterrupted))


def test_a_worker_that_dies_ends_all_with_the_cause(tree: Tree) -> None:
    process = train(tree, 2, "--epochs", "300")
    wait_for_line(process, "epoch=1;")
    workers = workers_of(process)
    os.kill(workers[0], signal.SIGKILL)
    killed = time.monotonic()
    printed = process.communicate(timeout=PATIENCE)[0]
    assert time.monotonic() - killed < DEATH_SECONDS
    assert process.returncode == 137, printed
    assert tree.failure.startswith("the training was killed by signal 9 (SIGKILL)")
    assert "worker 1 lost another one" in printed
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_mistake_is_told_once(tree: Tree) -> None:
    data = tree.root / "input" / "data" / "training"
    shutil.rmtree(data)
    data.mkdir()
    process = train(tree, 2)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 2, printed
    assert "is empty" in tree.failure
    assert printed.count("error:") == 1


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
    assert result.stdout.count("epoch=1; train_loss") == 1
    assert (out / "model" / "model.json").is_file()
