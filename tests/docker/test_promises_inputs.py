"""What our image promises about what a training is given: settings, channels, configuration."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Training
from .opt_ml import Channel
from .platform import JobEnd, TrainingJob

pytestmark = [pytest.mark.docker, pytest.mark.promise]
USER = 10001


def settings_of(job: TrainingJob) -> dict[str, Any]:
    model = json.loads((job.disk() / "model" / "model.json").read_text(encoding="utf-8"))
    settings: dict[str, Any] = model["settings"]
    return settings


def test_hyperparameters_are_read_in_every_encoding(training: Training) -> None:
    """Hyperparameters: strings, JSON in strings and numbers of tuning jobs are read alike."""
    settings = settings_of(training.job)
    assert (settings["epochs"], settings["batch_size"], settings["learning_rate"]) == (2, 16, 0.01)
    assert (settings["optimizer"], settings["group_regex"]) == ("adamw", None)


def test_keys_of_the_platform_are_ignored(training: Training) -> None:
    """Hyperparameters: what SDKs and tuning jobs add (sagemaker_*, _tuning*) is ignored."""
    assert training.end.status == "Completed", training.end.log
    assert set(training.job.hyperparameters) > {"sagemaker_program", "_tuning_objective_metric"}
    assert not [name for name in settings_of(training.job) if "sagemaker" in name]


def test_channels_of_an_sdk_are_not_data(training: Training) -> None:
    """Channels: code, sm_drivers and the manifests beside the data are not data."""
    seen = {path.name for path in (training.job.disk() / "input" / "data").iterdir()}
    assert seen > {"train", "train-manifest", "code", "code-manifest", "sm_drivers"}
    assert "data: 48 images in 2 classes" in training.end.log


def test_undocumented_configuration_does_no_harm(training: Training) -> None:
    """Configuration: files that nobody documents are not read."""
    config = training.job.disk() / "input" / "config"
    files = {path.name for path in config.iterdir()}
    assert files > {"init-config.json", "metric-definition-regex.json", "trainingjobconfig.json"}
    assert training.end.status == "Completed", training.end.log
    assert "nobody" not in training.end.log


def test_nothing_is_written_to_the_input(training: Training, slices: Path) -> None:
    """Channels: nothing below /opt/ml/input is written, changed or removed."""
    data = training.job.disk() / "input" / "data"
    for path in (path for path in slices.rglob("*") if path.is_file()):
        assert (data / "train" / path.relative_to(slices)).read_bytes() == path.read_bytes()
    assert len([path for path in data.rglob("*") if path.is_file()]) == 48 + 1 + 2 + 3


@pytest.fixture(scope="module")
def elsewhere(
    image: str, slices: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrainingJob, JobEnd]]:
    """A training on a platform that says little, as another user on a read-only file system."""
    job = TrainingJob(
        image=image,
        folder=tmp_path_factory.mktemp("elsewhere"),
        channels={"training": Channel(slices, mode="FastFile")},
        entrypoint=["train"],
        arguments=["--epochs", "1", "--wandb-mode", "disabled"],
        missing=["resourceconfig.json", "inputdataconfig.json", "hyperparameters.json"],
        user=USER,
        options=["--read-only", "--tmpfs", "/tmp", "--workdir", "/"],  # noqa: S108
    )
    with job:
        yield job, job.wait()


def test_missing_configuration_is_a_warning(elsewhere: tuple[TrainingJob, JobEnd]) -> None:
    """Configuration: without resourceconfig.json and inputdataconfig.json it warns and trains."""
    _, end = elsewhere
    assert end.status == "Completed", end.log
    for name in ("resourceconfig.json", "inputdataconfig.json"):
        assert f"warning: /opt/ml/input/config/{name} is missing" in end.log


def test_entry_point_and_arguments_of_the_job(elsewhere: tuple[TrainingJob, JobEnd]) -> None:
    """Start: ContainerEntrypoint ["train"] with ContainerArguments ["--epochs", "1"]."""
    job, end = elsewhere
    assert settings_of(job)["epochs"] == 1, end.log


def test_any_user_on_a_read_only_file_system(elsewhere: tuple[TrainingJob, JobEnd]) -> None:
    """Confined: trains as any user who may write to the mounts, in any working directory."""
    job, end = elsewhere
    assert end.status == "Completed", end.log
    for path in (job.disk() / "model", job.disk() / "output"):
        for written in (found for found in path.rglob("*") if found.is_file()):
            assert written.stat().st_uid == USER
            assert written.stat().st_mode & 0o444 == 0o444, f"{written} is not for everybody"


def one_file(folder: Path) -> Channel:
    (folder / "README.txt").write_text("a file", encoding="utf-8")
    return Channel(folder)


def augmented(folder: Path) -> Channel:
    line = json.dumps({"source-ref": "s3://bucket/1.png", "class": 0})
    (folder / "train.manifest").write_text(line, encoding="utf-8")
    return Channel(folder)


REFUSED: dict[str, tuple[Callable[[Path], Channel], dict[str, str], list[str]]] = {
    "Pipe mode": (
        lambda folder: Channel(folder, mode="Pipe"),
        {},
        ["train", "Pipe mode", "File or FastFile"],
    ),
    "an augmented manifest": (augmented, {}, ["train", "augmented manifest", "File or FastFile"]),
    "RecordIO": (
        lambda folder: Channel(folder, record_wrapper="RecordIO"),
        {},
        ["train", "RecordIO", "File or FastFile"],
    ),
    "a prefix without objects": (Channel, {}, ["train", "check the channel's S3 address"]),
    "an unknown hyperparameter": (
        one_file,
        {"learning_rte": "1"},
        ["unknown setting 'learning_rte'", "did you mean 'learning_rate'?"],
    ),
    "a fraction where a whole number is due": (
        one_file,
        {"batch_size": "16.5"},
        ["'batch_size' is '16.5'", "Integer range"],
    ),
    "a value of 2,400 letters": (
        one_file,
        {"epochs": "é" * 2400},
        ["setting 'epochs' is 'ééé"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_told_in_one_sentence(image: str, tmp_path: Path, case: str) -> None:
    """Refused with exit code 2 and one sentence"""
    make_channel, hyperparameters, words = REFUSED[case]
    (tmp_path / "s3").mkdir()
    job = TrainingJob(
        image=image,
        folder=tmp_path / "disks",
        channels={"train": make_channel(tmp_path / "s3")},
        hyperparameters=hyperparameters,
    )
    with job:
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [2]), end.log
    assert all(word in end.reason for word in words), end.reason
    text = (job.disk() / "output" / "failure").read_bytes().decode("utf-8")
    assert text == end.reason
    assert len(text.splitlines()) == 1
    assert "Traceback" not in end.log


def test_arguments_alone_replace_train(image: str, tmp_path: Path) -> None:
    """Start: ContainerArguments alone, ["train", "--epochs", "0"], reach train as options."""
    job = TrainingJob(
        image=image, folder=tmp_path, channels={}, arguments=["train", "--epochs", "0"]
    )
    with job:
        end = job.wait()
    assert (end.status, list(end.codes)) == ("Failed", [2]), end.log
    assert "setting 'epochs' is '0' on the command line" in end.reason
