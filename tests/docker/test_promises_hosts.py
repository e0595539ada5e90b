"""What our image promises about jobs with several hosts: they end together, and with one model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .opt_ml import Channel
from .platform import JobEnd, TrainingJob

pytestmark = [pytest.mark.docker, pytest.mark.promise]
# The platform sorts them by letters: algo-1, algo-10, algo-2.
HOSTS = ("algo-1", "algo-2", "algo-10")
SETTINGS = {"epochs": "1", "batch_size": "16", "wandb_mode": "disabled"}


@pytest.fixture(scope="module")
def three(
    image: str, slices: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrainingJob, JobEnd]]:
    """A training on three hosts, each with all the data."""
    job = TrainingJob(
        image=image,
        folder=tmp_path_factory.mktemp("three"),
        channels={"train": Channel(slices)},
        hyperparameters=SETTINGS,
        hosts=HOSTS,
    )
    with job:
        yield job, job.wait()


def test_the_hosts_end_together(three: tuple[TrainingJob, JobEnd]) -> None:
    """Hosts: the first of algo-1, algo-10, algo-2 trains, the others wait, all end with 0."""
    job, end = three
    assert list(job.hosts) == ["algo-1", "algo-10", "algo-2"]
    assert (end.status, list(end.codes)) == ("Completed", [0, 0, 0]), end.log
    for host in ("algo-10", "algo-2"):
        assert f"algo-1 trains for all 3 hosts; {host} waits for it" in end.log


def test_one_host_writes_the_model(three: tuple[TrainingJob, JobEnd]) -> None:
    """Hosts: no two of them write the same file, so that their trees can be merged."""
    job, _ = three
    assert job.artifact("output").is_file()
    assert (job.disk("algo-1") / "model" / "model.json").is_file()
    assert not list((job.disk("algo-2") / "model").iterdir())


def test_the_hosts_fail_together(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: when the training dies on the first, the others end with its cause, and not with 0."""
    job = TrainingJob(
        image=image,
        folder=tmp_path,
        channels={"train": Channel(slices)},
        hyperparameters=SETTINGS | {"epochs": "300"},
        hosts=HOSTS,
    )
    with job:
        job.first.worker("kill -9 $worker")
        end = job.wait()
    assert end.status == "Failed"
    assert all(end.codes), end.log
    for host in job.hosts:
        failure = (job.disk(host) / "output" / "failure").read_text(encoding="utf-8")
        assert "killed by signal 9" in failure
        assert host == "algo-1" or failure.startswith("algo-1")


def test_shards_are_refused(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: ShardedByS3Key on several hosts is refused, with FullyReplicated as the remedy."""
    job = TrainingJob(
        image=image,
        folder=tmp_path,
        channels={"train": Channel(slices, distribution="ShardedByS3Key")},
        hyperparameters=SETTINGS,
        hosts=("algo-1", "algo-2"),
    )
    with job:
        for container in job.containers:
            container.wait_for("is ShardedByS3Key")
        # Every host refuses by itself; the first one still waits a while for others to tell.
        assert job.containers[1].wait().code == 2
    failure = (job.disk("algo-2") / "output" / "failure").read_text(encoding="utf-8")
    assert "use FullyReplicated" in failure


def test_shards_on_one_host_are_all_the_data(image: str, slices: Path, tmp_path: Path) -> None:
    """Hosts: ShardedByS3Key on one host is all the data, and fine."""
    job = TrainingJob(
        image=image,
        folder=tmp_path,
        channels={"train": Channel(slices, distribution="ShardedByS3Key")},
        hyperparameters=SETTINGS | {"epochs": "300"},
    )
    with job:
        job.first.wait_for("data: 48 images in 2 classes")
