"""`alexmri aws train` and what goes with it: one job for one wish, watched to its end."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from alexmri.aws.jobs import TRAINING_LOGS

from .conftest import (
    BUCKET,
    REVISION,
    ROLE,
    SECRET,
    Cloud,
    Run,
    client,
    error_of,
    put,
)

DATA = f"s3://{BUCKET}/alexmri/data/0123456789abcdef"
TRAIN = ("train", "--data", DATA, "--image", REVISION, "--epochs", "3", "--seed", "1")


@pytest.fixture
def data(image: str) -> str:
    put("alexmri/data/0123456789abcdef/A/1.png", b"x")
    return DATA


def description(name: str, status: str, **more: Any) -> dict[str, Any]:
    """Return what DescribeTrainingJob says of a job of the request TRAIN."""
    channel = {"S3DataType": "S3Prefix", "S3Uri": f"{DATA}/"}
    return {
        "TrainingJobName": name,
        "TrainingJobStatus": status,
        "SecondaryStatus": "Training" if status == "InProgress" else status,
        "HyperParameters": {"epochs": "3", "seed": "1"},
        "AlgorithmSpecification": {"TrainingImage": more.pop("image", "i")},
        "InputDataConfig": [{"ChannelName": "training", "DataSource": {"S3DataSource": channel}}],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/alexmri/jobs"},
        "ModelArtifacts": {"S3ModelArtifacts": f"s3://{BUCKET}/m.tar.gz"},
        **more,
    }


def test_the_request_says_all_of_it(cloud: Cloud, data: str, image: str, run: Run) -> None:
    options = (
        *("--wandb-secret", SECRET, "--subnets", "subnet-1", "--security-groups", "sg-1"),
        *("--tags", "team=mri", "--kms-key", "alias/k", "--training-instance", "ml.m5.xlarge"),
        *("--training-instances", "4"),
    )
    done = run(*options, *TRAIN, "--optimizer", "adamw", "--deterministic")
    (request,) = cloud.sent("CreateTrainingJob")
    name = request["TrainingJobName"]
    assert name.startswith("alexmri-")
    assert request["AlgorithmSpecification"]["TrainingImage"] == image
    assert {"Name": "val_macro_f1", "Regex": "(?:^|[ ;])val_macro_f1=([-+.0-9eE]+);"} in (
        request["AlgorithmSpecification"]["MetricDefinitions"]
    )
    # What was given and nothing else: the rest is the image's own default.
    assert request["HyperParameters"] == {
        "epochs": "3",
        "seed": "1",
        "optimizer": "adamw",
        "deterministic": "true",
    }
    assert request["RoleArn"] == ROLE
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "training"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == f"{DATA}/"
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 86_400,
        "MaxWaitTimeInSeconds": 172_800,
    }
    assert request["CheckpointConfig"] == {
        "S3Uri": f"s3://{BUCKET}/alexmri/checkpoints/{name}",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    assert request["Environment"] == {"ALEXMRI_WANDB_SECRET": SECRET}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert request["OutputDataConfig"]["KmsKeyId"] == "alias/k"
    assert request["ResourceConfig"]["VolumeKmsKeyId"] == "alias/k"
    assert request["ResourceConfig"]["InstanceCount"] == 4
    assert {"Key": "team", "Value": "mri"} in request["Tags"]
    assert {"Key": "alexmri:revision", "Value": REVISION} in request["Tags"]
    assert {"Key": "alexmri:data-training", "Value": "0123456789abcdef"} in request["Tags"]
    assert f"to fetch model and report: alexmri aws download {name}" in done.stdout


def test_an_instance_with_a_disk_of_its_own_gets_no_key_for_it(
    cloud: Cloud, data: str, run: Run
) -> None:
    """AWS refuses VolumeKmsKeyId for such instances."""
    run("--kms-key", "k", "--training-instance", "ml.g5.xlarge", *TRAIN, "--detach")
    assert "VolumeKmsKeyId" not in cloud.sent("CreateTrainingJob")[0]["ResourceConfig"]


def test_twice_is_once(cloud: Cloud, data: str, run: Run) -> None:
    run(*TRAIN)
    assert "has finished with these settings" in run(*TRAIN).stdout
    assert len(cloud.sent("CreateTrainingJob")) == 1
    run(*TRAIN, "--batch-size", "64")
    first, second = cloud.sent("CreateTrainingJob")
    assert first["TrainingJobName"] != second["TrainingJobName"]
    assert first["CheckpointConfig"] != second["CheckpointConfig"]
    told = error_of(run(*TRAIN, "--name", second["TrainingJobName"], ok=False))
    assert "of other settings, data or image; choose another --name" in told


def test_a_failed_job_goes_on_from_its_checkpoints(
    cloud: Cloud, data: str, image: str, run: Run
) -> None:
    failed = description("x", "Failed", image=image, FailureReason="InternalServerError: gone")
    absent = {"__type": "ValidationException", "message": "Requested resource not found."}

    def describe(body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        name = body["TrainingJobName"]
        return (400, absent) if name.endswith("-2") else (200, failed | {"TrainingJobName": name})

    cloud.answers["DescribeTrainingJob"] = describe
    run(*TRAIN, "--detach")
    (request,) = cloud.sent("CreateTrainingJob")
    name = request["TrainingJobName"]
    assert name.endswith("-2")
    assert request["CheckpointConfig"]["S3Uri"].endswith("/checkpoints/" + name[:-2])


def log(job: str, *lines: str, host: int = 1) -> None:
    logs: Any = client("logs")
    group, stream = TRAINING_LOGS, f"{job}/algo-{host}-1"
    if host == 1:
        logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(time.time() * 1000)
    events = [{"timestamp": now + n, "message": line} for n, line in enumerate(lines)]
    if events:
        logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def test_states_and_log_are_told_once_until_the_end(cloud: Cloud, run: Run) -> None:
    transitions = [{"Status": "Training", "StatusMessage": "Training image download completed"}]
    running = description("j", "InProgress", SecondaryStatusTransitions=transitions)
    starting = description("j", "InProgress") | {"SecondaryStatus": "Starting"}
    done = description(
        "j",
        "Completed",
        TrainingTimeInSeconds=100,
        BillableTimeInSeconds=30,
        FinalMetricDataList=[{"MetricName": "val_macro_f1", "Value": 0.5, "Timestamp": 0}],
    )
    cloud.answer("DescribeTrainingJob", starting, running, running, done)
    log("j", "epoch=1; train_loss=0.5;", "epoch=2; train_loss=0.4;")
    printed = run("logs", "j", "--follow").stdout.splitlines()
    assert printed[0] == "[Starting]"
    assert printed.count("[Training] Training image download completed") == 1
    assert printed.count("epoch=2; train_loss=0.4;") == 1
    assert "time: 100 s, paid: 30 s (70% saved)" in printed
    assert "val_macro_f1: 0.5" in printed
    assert run("logs", "j").stdout.splitlines() == [
        "epoch=1; train_loss=0.5;",
        "epoch=2; train_loss=0.4;",
    ]


def test_a_log_goes_on_behind_an_empty_page_and_after_the_end(cloud: Cloud, run: Run) -> None:
    """CloudWatch may answer without events while the token changes, and lags behind the job."""
    cloud.answer("DescribeTrainingJob", description("j", "Completed"))
    log("j")

    def page(token: str, *lines: str) -> dict[str, Any]:
        events = [{"timestamp": 0, "message": line} for line in lines]
        return {"events": events, "nextForwardToken": token, "nextBackwardToken": "b"}

    pages = (page("1", "first"), page("2"), page("3", "second"), page("3"))
    cloud.answer("GetLogEvents", *pages)
    assert run("logs", "j").stdout.splitlines() == ["first", "second"]
    late = (*pages, page("3"), page("4", "epoch=3; train_loss=0.3;"), page("4"))
    cloud.answer("GetLogEvents", *late)
    assert "epoch=3; train_loss=0.3;" in run("logs", "j", "--follow").stdout.splitlines()


def test_the_logs_of_more_than_fifty_hosts_are_read(cloud: Cloud, run: Run) -> None:
    """CloudWatch names 50 streams in an answer."""
    cloud.answer("DescribeTrainingJob", description("j", "Completed"))
    for host in range(1, 61):
        log("j", f"host {host}", host=host)
    lines = run("logs", "j").stdout.splitlines()
    assert sorted(lines) == sorted(f"host {host}" for host in range(1, 61))
    assert len(cloud.sent("DescribeLogStreams")) == 2


def test_a_failure_is_told_with_its_reason(cloud: Cloud, run: Run) -> None:
    failed = description("j", "Failed", FailureReason="AlgorithmError: no images in A")
    cloud.answer("DescribeTrainingJob", failed)
    assert error_of(run("logs", "j", "--follow", ok=False)) == (
        "j failed: AlgorithmError: no images in A"
    )
    assert "reason: AlgorithmError: no images in A" in run("status", "j").stdout


# Ctrl-C counts here even where whoever started the tests ignores it, as a shell does for `&`.
SCRIPT = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from alexmri.aws import client; client.POLL_SECONDS = 0.05; "
    "from alexmri.cli import main; main()"
)


def waiting(cloud: Cloud, *arguments: str) -> subprocess.Popen[str]:
    """Start a command that waits for a job; return when it does."""
    polls, waits = [], threading.Event()

    def count(target: str) -> None:
        polls.append(target == "DescribeTrainingJob")
        if sum(polls) >= 4:
            waits.set()

    cloud.before = count
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "aws", *arguments],
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waits.wait(30)
    cloud.before = lambda target: None
    return process


def test_ctrl_c_detaches_and_says_how_to_attach(cloud: Cloud, run: Run) -> None:
    cloud.answer("DescribeTrainingJob", description("j", "InProgress"))
    process = waiting(cloud, "logs", "j", "--follow")
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped waiting; j goes on. To wait again: alexmri aws logs j --follow" in printed
    assert "Traceback" not in errors
    assert not cloud.sent("StopTrainingJob")


def test_the_image_of_a_tree_with_changes_is_not_guessed(
    cloud: Cloud, image: str, run: Run, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    commit = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty")
    subprocess.run(["git", *commit, "-m", "one"], check=True)
    told = error_of(run("train", "--data", DATA, ok=False))
    assert "(alexmri.toml, …)" in told
    assert "commit them, or name an image that is there with --image" in told


def test_kill_9_while_waiting_costs_nothing(cloud: Cloud, data: str, image: str, run: Run) -> None:
    """The same command finds the job that it had started, and goes on watching it."""
    started: list[str] = []

    def describe(body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if not cloud.sent("CreateTrainingJob"):
            return 400, {"__type": "ValidationException", "message": "Could not find job"}
        started.append(body["TrainingJobName"])
        state = "InProgress" if len(started) < 8 else "Completed"
        return 200, description(body["TrainingJobName"], state, image=image)

    cloud.answers["DescribeTrainingJob"] = describe
    process = waiting(cloud, *TRAIN)
    process.kill()
    process.communicate()
    printed = run(*TRAIN).stdout
    assert "runs already: attaching to it" in printed or "has finished" in printed
    assert len(cloud.sent("CreateTrainingJob")) == 1
    assert len(set(started)) == 1


def test_stop_asks_once(cloud: Cloud, run: Run) -> None:
    running, stopping, stopped = (
        description("j", state) for state in ("InProgress", "Stopping", "Stopped")
    )
    cloud.answer("DescribeTrainingJob", running, stopping, stopped)
    cloud.answer("StopTrainingJob", {})
    assert "j is being stopped; the same" in run("stop", "j").stdout
    assert "already" in run("stop", "j").stdout
    assert "its status is Stopped" in run("stop", "j").stdout
    assert cloud.sent("StopTrainingJob") == [{"TrainingJobName": "j"}]


def archive(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def test_download_leaves_what_a_training_here_leaves(
    cloud: Cloud, tmp_path: Path, run: Run
) -> None:
    cloud.answer("DescribeTrainingJob", description("j", "Completed"))
    assert "j has left no results yet; it is Completed" in error_of(run("download", "j", ok=False))
    put("alexmri/jobs/j/output/model.tar.gz", archive(**{"model.json": b"{}"}))
    put("alexmri/jobs/j/output/output.tar.gz", archive(**{"report.html": b"r", "wandb/x": b"w"}))
    for _ in range(2):
        run("download", "j")
        assert Path("runs/j/model/model.json").read_bytes() == b"{}"
        assert Path("runs/j/report.html").read_bytes() == b"r"
        assert Path("runs/j/wandb/x").read_bytes() == b"w"
    assert len([t for t in cloud.targets() if t.startswith(f"GET /{BUCKET}/")]) == 2
    cloud.answer("DescribeTrainingJob", description("k", "Completed"))
    told = error_of(run("download", "k", "--out", "runs/j", ok=False))
    assert told.startswith("runs/j holds results of another job (j-output.tar.gz)")
    cloud.answer("DescribeTrainingJob", description("j", "Completed"))
    put("alexmri/jobs/j/output/model.tar.gz", archive(**{"../out": b"{}"}))
    assert "a name that leads out of its folder" in error_of(
        run("download", "j", "--out", "other", ok=False)
    )
    assert not list(Path("other").glob("**/.unpacking*"))


def test_download_writes_nothing_outside_of_its_folder(
    cloud: Cloud, tmp_path: Path, run: Run
) -> None:
    """A link in the folder does not lead the files of a job to another place."""
    cloud.answer("DescribeTrainingJob", description("j", "Completed"))
    put("alexmri/jobs/j/output/output.tar.gz", archive(**{"wandb/x": b"w"}))
    outside = tmp_path / "outside"
    outside.mkdir()
    Path("runs/j").mkdir(parents=True)
    Path("runs/j/wandb").symlink_to(outside)
    told = error_of(run("download", "j", ok=False))
    assert told.startswith("'wandb' would be written outside of runs/j; choose another folder")
    assert list(outside.iterdir()) == []
    assert "outside of runs" in error_of(run("download", "../../outside/k", ok=False))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("train", "--data", "slices", "--image", "x"),
            "--data slices is not an S3 address; `alexmri",
        ),
        (("train", "--data", DATA, "--image", "x", "--epochs", "0"), "setting 'epochs' is '0'"),
        (("status", "gone"), "there is no training job and no tuning job gone in us-east-1"),
        ((*TRAIN,), f"there is nothing at {DATA}/; `alexmri aws upload DIR` prints an address"),
    ],
)
def test_a_mistake_is_one_sentence(
    cloud: Cloud, image: str, run: Run, arguments: tuple[str, ...], words: str
) -> None:
    assert words in error_of(run(*arguments, ok=False))
    assert not cloud.sent("CreateTrainingJob")


@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        ("tune", *TRAIN[1:-2], "--range", "learning_rate=0.001:0.1:log"),
        ("status", "j"),
        ("logs", "j"),
        ("stop", "j"),
        ("download", "j"),
        ("register", "j"),
        ("versions",),
        ("approve", "1"),
        ("reject", "1"),
        ("deploy",),
        ("invoke", "slice.png"),
        ("transform", DATA),
        ("rollback",),
        ("delete", "e"),
        ("trace", "e"),
        ("setup",),
        ("pipeline", "upsert", "--data", DATA, "--image", "x"),
        ("pipeline", "start"),
        ("pipeline", "status"),
        ("pipeline", "show"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_dry_run_shows_valid_requests_and_asks_nothing(
    cloud: Cloud, run: Run, valid: Any, arguments: tuple[str, ...]
) -> None:
    Path("slice.png").write_bytes(b"")
    shown = json.loads(run(*arguments, "--dry-run").stdout)
    assert shown
    for step in shown:
        if "call" in step and step["call"] != "describe_images":
            valid(step)
    assert cloud.requests == []
