"""What our image promises about processes: process 1, deaths, environment, log, results."""

import json
import random
import re
import tarfile
import time
from pathlib import Path

import pytest

from .conftest import Training
from .docker_helpers import wait_for
from .opt_ml import Channel
from .platform import TrainingJob

pytestmark = [pytest.mark.docker, pytest.mark.promise]


def test_exit_code_0_is_a_model(training: Training) -> None:
    """Results: exit code 0, no failure file, and model.tar.gz holds the model and nothing else."""
    assert (training.end.status, list(training.end.codes)) == ("Completed", [0]), training.end.log
    assert not (training.job.disk() / "output" / "failure").exists()
    with tarfile.open(training.job.artifact()) as tar:
        names = set(tar.getnames())
    assert names == {
        *("model.safetensors", "model.json", "golden.npz", "ood.safetensors", "MODEL_CARD.md"),
        "training_images.sha256",
        "held_out_images.sha256",
    }


def test_results_are_in_output_data(training: Training) -> None:
    """Results: figures and report are in output.tar.gz, without links."""
    with tarfile.open(training.job.artifact("output")) as tar:
        names = set(tar.getnames())
    assert names > {"report.html", "evaluation.json", "statistics.json", "metrics.jsonl"}


def test_process_1_supervises(training: Training) -> None:
    """Process 1 is small: it starts the training in a process of its own and loads no torch."""
    assert "/python" in training.libraries
    assert "torch" not in training.libraries


def test_the_environment_is_the_platforms(training: Training) -> None:
    """Environment: the training sees what the platform set, and no variable of other toolkits."""
    seen = training.environment
    assert seen["TRAINING_JOB_NAME"] == training.job.name
    assert not {"SM_MODEL_DIR", "SM_HPS", "SM_CHANNEL_TRAIN"} & set(seen)


def test_an_entry_point_that_is_not_run_is_told(training: Training) -> None:
    """Start: a job that names its own script (sagemaker_program) is told that it is not run."""
    assert "(sagemaker_program), which is not run" in training.end.log


def test_the_log_is_whole_lines(training: Training) -> None:
    """Log: a first line before anything slow; whole lines; no bars, colours or carriage returns."""
    assert training.end.log.startswith("alexmri train: the job in /opt/ml\n")
    assert not re.search(r"[\r\x1b\x08]", training.end.log)


def test_the_last_metric_belongs_to_the_model(training: Training) -> None:
    """Metrics: one line per epoch, and the last one is of the model that is saved."""
    lines = [line for line in training.end.log.splitlines() if line.startswith("epoch=")]
    assert len(lines) == 3
    model = json.loads((training.job.disk() / "model" / "model.json").read_text(encoding="utf-8"))
    values = dict(re.findall(r"(\w+)=([^;]+);", lines[-1]))
    for split, name in (("test", "test_macro_f1"), ("validation", "val_macro_f1")):
        measured = model["metrics"][split]["macro_f1"]["value"]
        assert float(values[name]) == pytest.approx(measured, rel=1e-5)
    assert int(values["epoch"]) == model["best_epoch"]
    # All figures of that epoch, so that the last value of each belongs to the model.
    assert lines[-1].startswith(lines[model["best_epoch"] - 1])


def start(image: str, folder: Path, slices: Path, *options: str) -> TrainingJob:
    return TrainingJob(
        image=image,
        folder=folder,
        channels={"train": Channel(slices)},
        hyperparameters={"epochs": "300", "batch_size": "16", "wandb_mode": "disabled"},
        options=options,
    )


def test_kill_9_of_the_worker(image: str, slices: Path, tmp_path: Path) -> None:
    """Death: kill -9 of the training at any moment says "killed by signal 9"."""
    with start(image, tmp_path, slices) as job:
        job.first.wait_for("alexmri train:")
        seconds = random.uniform(0, 12)  # noqa: S311 - no secret
        time.sleep(seconds)
        job.first.worker("kill -9 $worker")
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [137]), f"{seconds} s\n{end.log}"
    assert "killed by signal 9" in end.reason, f"{seconds} s: {end.reason}"
    assert len(end.reason) <= 1024


def test_lack_of_memory_names_the_limit(image: str, slices: Path, tmp_path: Path) -> None:
    """Death: out of memory names the container's limit and what to change."""
    limit = ("--memory", "200m", "--memory-swap", "200m")
    with start(image, tmp_path, slices, *limit) as job:
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [137]), end.log
    assert end.reason.startswith("out of memory")
    assert "the container's limit of 200 MiB" in end.reason
    assert "batch_size" in end.reason


def test_a_bus_error_names_shared_memory(image: str, slices: Path, tmp_path: Path) -> None:
    """Death: a bus error names /dev/shm and its size."""
    with start(image, tmp_path, slices) as job:
        job.first.worker("kill -BUS $worker")
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [135]), end.log
    assert "/dev/shm (64 MiB)" in end.reason  # noqa: S108


def test_orphans_are_reaped(image: str, slices: Path, tmp_path: Path) -> None:
    """Process 1 reaps the processes whose parents have left."""
    with start(image, tmp_path, slices) as job:
        orphan = job.first.execute("sleep 0.1 > /dev/null & echo $!").strip()
        wait_for(lambda: "gone" in job.first.execute(f"test -d /proc/{orphan} || echo gone"))
        assert job.first.runs
