"""What our image promises about jobs with several hosts: one model, one end, one cause."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .container import Container
from .opt_ml import Channel
from .platform import JobEnd, TrainingJob

pytestmark = [pytest.mark.docker, pytest.mark.promise]
# The platform sorts them by letters: algo-1, algo-10, algo-2.
HOSTS = ("algo-1", "algo-2", "algo-10")
SETTINGS = {"epochs": "1", "batch_size": "16", "wandb_mode": "disabled"}
LONG = SETTINGS | {"epochs": "300"}
# The child of process 1 is torchrun, whose child is the worker.
KILL_WORKER = "read inner rest < /proc/$worker/task/$worker/children; kill -9 $inner"
# The line of the first epoch; the last line of all repeats one, for the model that was saved.
FIRST_EPOCH = r"^epoch=1; .*images_per_second=\d+;$"
# From a death to the end of all hosts.
DEATH_SECONDS = 60


@pytest.fixture(scope="module")
def three(
    image: str, slices: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrainingJob, JobEnd]]:
    """A training on three hosts, each with all the data; the first one's name is known late."""
    job = TrainingJob(
        image=image,
        folder=tmp_path_factory.mktemp("three"),
        channels={"train": Channel(slices)},
        hyperparameters=SETTINGS,
        hosts=HOSTS,
        slow=["algo-1"],
    )
    with job:
        for host in ("algo-10", "algo-2"):
            job.host(host).wait_for("waiting for the first host algo-1")
        job.resolve("algo-1")
        yield job, job.wait()


def make_two(image: str, folder: Path, slices: Path, **more: object) -> TrainingJob:
    """A training on two hosts, too long to end by itself."""
    return TrainingJob(
        image=image,
        folder=folder,
        channels={"train": Channel(slices)},
        hyperparameters=LONG,
        hosts=("algo-1", "algo-2"),
        **more,  # type: ignore[arg-type]
    )


def struck(job: TrainingJob, strike: Callable[[Container], object]) -> tuple[JobEnd, float]:
    """Hit the second of two hosts while they train; return how and after what time all ended."""
    with job:
        job.first.wait_for("epoch=1;")
        strike(job.host("algo-2"))
        died = time.time()
        end = job.wait()
        return end, max(container.wait().time for container in job.containers) - died


def failures(job: TrainingJob, *hosts: str) -> set[str]:
    return {
        (job.disk(host) / "output" / "failure").read_text(encoding="utf-8")
        for host in hosts or job.hosts
    }


def test_every_host_trains(three: tuple[TrainingJob, JobEnd]) -> None:
    """Hosts: all of algo-1, algo-10, algo-2 train, ranked as listed, and end together with 0."""
    job, end = three
    assert list(job.hosts) == ["algo-1", "algo-10", "algo-2"]
    assert (end.status, list(end.codes)) == ("Completed", [0, 0, 0]), end.log
    for rank, host in enumerate(job.hosts):
        assert (
            f"{host} is host {rank} of algo-1, algo-10, algo-2; workers on this host: 1" in end.log
        )
    assert len(re.findall(FIRST_EPOCH, end.log, re.MULTILINE)) == 1


def test_a_slow_name_is_waited_for(three: tuple[TrainingJob, JobEnd]) -> None:
    """Hosts: one whose name does not resolve yet is named, and waited for."""
    _, end = three
    assert end.status == "Completed", end.log
    # The first host itself may have to wait for its name too.
    assert end.log.count("waiting for the first host algo-1: its name does not resolve yet") >= 2


def test_one_host_writes_the_model(three: tuple[TrainingJob, JobEnd]) -> None:
    """Hosts: no two of them write the same file, so that their trees can be merged."""
    job, _ = three
    assert job.artifact("output").is_file()
    assert (job.disk("algo-1") / "model" / "model.json").is_file()
    assert not list((job.disk("algo-2") / "model").iterdir())


def test_a_dead_worker_ends_all_hosts(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: a worker that dies on any of them ends all within 60 s; rank, host, cause are told."""
    job = make_two(image, tmp_path, slices)
    end, seconds = struck(job, lambda host: host.worker(KILL_WORKER))
    assert (end.status, end.codes[1]) == ("Failed", 137), end.log
    assert end.codes[0] != 0, end.log
    (cause,) = failures(job, "algo-2")
    assert cause.startswith("rank 1 on algo-2: the training was killed by signal 9"), end.log
    (cause,) = failures(job, "algo-1")
    assert cause.startswith("host algo-2 ended, and the training with it"), end.log
    assert seconds < DEATH_SECONDS


def test_a_dead_host_ends_the_others(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: one that is killed ends the others within 60 s, and they name it."""
    job = make_two(image, tmp_path, slices)
    end, seconds = struck(job, lambda host: host.signal("KILL"))
    assert end.status == "Failed"
    assert all(end.codes), end.log
    (cause,) = failures(job, "algo-1")
    assert cause.startswith("host algo-2 ended, and the training with it"), end.log
    assert seconds < DEATH_SECONDS


def test_a_stop_at_different_times(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: SIGTERM on all at different times leaves one checkpoint, a model, and 0 everywhere."""
    (s3 := tmp_path / "s3").mkdir()
    with make_two(image, tmp_path / "disks", slices, checkpoints=s3) as job:
        job.first.wait_for("epoch=1;")
        job.stopped_at = time.time()
        job.host("algo-2").signal("TERM")
        job.first.wait_for("SIGTERM: stopping")
        job.first.signal("TERM")
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Stopped", [0, 0]), end.log
    assert "saving only" not in end.log
    assert list((job.disk("algo-1") / "checkpoints").glob("step-*.json"))
    assert not list((job.disk("algo-2") / "checkpoints").glob("step-*"))
    assert json.loads((job.disk() / "model" / "model.json").read_text(encoding="utf-8"))["classes"]
    assert not any((job.disk(host) / "output" / "failure").exists() for host in job.hosts)
    # One host goes on where two were stopped.
    one = TrainingJob(
        image=image,
        folder=tmp_path / "one",
        channels={"train": Channel(slices)},
        hyperparameters=LONG,
        checkpoints=s3,
    )
    with one:
        one.first.wait_for("resuming at epoch")


def test_shards_are_refused(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: ShardedByS3Key, which gives each host a part of the files, is refused at once."""
    job = TrainingJob(
        image=image,
        folder=tmp_path,
        channels={"train": Channel(slices, distribution="ShardedByS3Key")},
        hyperparameters=SETTINGS,
        hosts=("algo-1", "algo-2"),
    )
    with job:
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [2, 2]), end.log
    assert all("use FullyReplicated" in cause for cause in failures(job))


def test_shards_on_one_host_are_all_the_data(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: ShardedByS3Key on one host is all the data, and fine."""
    job = TrainingJob(
        image=image,
        folder=tmp_path,
        channels={"train": Channel(slices, distribution="ShardedByS3Key")},
        hyperparameters=LONG,
    )
    with job:
        job.first.wait_for("data: 48 images in 2 classes")
