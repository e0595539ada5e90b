"""What our image promises when a job is stopped, reclaimed or killed: the work is not lost."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .opt_ml import Channel
from .platform import JobEnd, TrainingJob

pytestmark = [pytest.mark.docker, pytest.mark.promise]
# Where the platform keeps the checkpoints is up to the job.
LOCAL_PATH = "/opt/ml/saved/here"
# Seconds.
FIRST_CHECKPOINT, WHOLE_STOP = 10, 90


def make_job(image: str, folder: Path, slices: Path, checkpoints: Path) -> TrainingJob:
    """A training too long to end by itself; its data are a read-only mount."""
    return TrainingJob(
        image=image,
        folder=folder,
        channels={"train": Channel(slices, mode="FastFile")},
        hyperparameters={"epochs": "300", "batch_size": "16", "wandb_mode": "disabled"},
        checkpoints=checkpoints,
        checkpoint_path=LOCAL_PATH,
    )


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CheckpointConfig's S3Uri, which the jobs of this module share one after the other."""
    return tmp_path_factory.mktemp("bucket")


@pytest.fixture(scope="module")
def stopped(
    image: str, slices: Path, s3: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrainingJob, JobEnd]]:
    """A job that was stopped after its first epoch."""
    with make_job(image, tmp_path_factory.mktemp("stopped"), slices, s3) as job:
        job.first.wait_for("epoch=1;")
        job.stop()
        yield job, job.wait()


def test_sigterm_saves_a_checkpoint_in_time(stopped: tuple[TrainingJob, JobEnd]) -> None:
    """SIGTERM: a checkpoint within 10 s, in the folder that checkpointconfig.json names."""
    job, end = stopped
    saved = list((job.disk() / "checkpoints").glob("*.json"))
    assert saved, end.log
    assert job.stopped_at
    assert max(path.stat().st_mtime for path in saved) - job.stopped_at < FIRST_CHECKPOINT


def test_sigterm_leaves_the_best_model(stopped: tuple[TrainingJob, JobEnd]) -> None:
    """SIGTERM: the best model so far is in /opt/ml/model."""
    job, end = stopped
    model = json.loads((job.disk() / "model" / "model.json").read_text(encoding="utf-8"))
    assert model["classes"] == ["MildDemented", "NonDemented"], end.log
    assert (job.disk() / "model" / "model.safetensors").is_file()


def test_sigterm_ends_in_time(stopped: tuple[TrainingJob, JobEnd]) -> None:
    """SIGTERM: exit code 0 within 90 s, and no failure file."""
    job, end = stopped
    assert (end.status, list(end.codes)) == ("Stopped", [0]), end.log
    assert end.seconds_to_stop < WHOLE_STOP
    assert not (job.disk() / "output" / "failure").exists()


def checkpoints_in(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("step-*")}


def test_the_grace_lets_the_checkpoint_reach_s3(
    stopped: tuple[TrainingJob, JobEnd], s3: Path
) -> None:
    """SIGTERM: process 1 lingers until the sync, which never runs after the end, has seen it."""
    job, end = stopped
    assert "waiting 10 s, so that the platform can fetch the checkpoint" in end.log
    local = checkpoints_in(job.disk() / "checkpoints")
    assert local
    assert checkpoints_in(s3) == local


@pytest.fixture(scope="module")
def hurried(
    stopped: tuple[TrainingJob, JobEnd],
    image: str,
    slices: Path,
    s3: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TrainingJob, JobEnd, str]]:
    """The stopped job again, killed with its host, and once more; then two signals in a row.

    With it comes the log of the killed one.
    """
    assert checkpoints_in(s3), stopped[1].log
    with make_job(image, tmp_path_factory.mktemp("killed"), slices, s3) as killed:
        killed.first.wait_for("resuming at epoch")
        time.sleep(random.uniform(0, 3))  # noqa: S311 - no secret
        killed.first.signal("KILL")
        log = killed.wait().log
    # A reclaimed host may have sent half of a file.
    newest = max(s3.glob("step-*.safetensors"))
    half = newest.with_name("step-99999999.safetensors")
    shutil.copyfile(newest.with_suffix(".json"), half.with_suffix(".json"))
    half.write_bytes(newest.read_bytes()[:1_000_000])
    with make_job(image, tmp_path_factory.mktemp("hurried"), slices, s3) as job:
        job.first.wait_for("epoch=")
        job.stop()
        job.first.wait_for("SIGTERM: stopping")
        job.first.signal("TERM")
        yield job, job.wait(), log


def test_a_job_goes_on_from_its_checkpoint(
    hurried: tuple[TrainingJob, JobEnd, str],
) -> None:
    """Resume: with the checkpoint back in place the training goes on, after SIGTERM and SIGKILL."""
    _, end, killed = hurried
    assert "resuming at epoch" in killed
    assert "resuming at epoch" in end.log


def test_half_a_checkpoint_is_passed_over(
    hurried: tuple[TrainingJob, JobEnd, str],
) -> None:
    """Resume: a damaged checkpoint is named, and the newest whole one is taken."""
    assert "checkpoint step-99999999.json is damaged" in hurried[1].log


def test_a_second_sigterm_hurries(hurried: tuple[TrainingJob, JobEnd, str]) -> None:
    """A second SIGTERM: a checkpoint and exit code 0, without report and grace."""
    job, end, _ = hurried
    assert (end.status, list(end.codes)) == ("Stopped", [0]), end.log
    assert "SIGTERM: saving only the checkpoint" in end.log
    assert "waiting 10 s" not in end.log
    saved = [path.stat().st_mtime for path in (job.disk() / "checkpoints").glob("*.json")]
    assert job.stopped_at
    assert max(saved) > job.stopped_at
    assert not (job.disk() / "output" / "data" / "report.html").exists()


def test_read_only_channels_are_enough(hurried: tuple[TrainingJob, JobEnd, str]) -> None:
    """Channels: FastFile's read-only mounts are all it needs."""
    job, end, _ = hurried
    assert job.channels["train"].mode == "FastFile"
    assert "data: 48 images in 2 classes" in end.log


def test_a_stop_before_the_first_epoch_ends(image: str, slices: Path, tmp_path: Path) -> None:
    """SIGTERM before the first epoch ends, under bash -c "exec train": exit code 0, no model."""
    (objects := tmp_path / "s3").mkdir()
    job = TrainingJob(
        image=image,
        folder=tmp_path / "disks",
        channels={"train": Channel(slices)},
        hyperparameters={"batch_size": "2", "wandb_mode": "disabled"},
        entrypoint=["bash", "-c", "exec train"],
        environment={"ALEXMRI_EPOCHS": "300"},
        checkpoints=objects,
    )
    with job:
        job.first.wait_for("300 epochs of")
        job.stop()
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Stopped", [0]), end.log
    assert "epoch=1;" not in end.log
    assert not list((job.disk() / "model").iterdir())
    # Whatever was done is saved.
    saved = list((job.disk() / "checkpoints").glob("step-*.json"))
    assert bool(saved) != ("nothing to save" in end.log), end.log
    assert not (job.disk() / "output" / "failure").exists()
    assert end.seconds_to_stop < WHOLE_STOP
