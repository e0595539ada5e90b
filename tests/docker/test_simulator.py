"""The simulator does to a container what its docstrings say: seen by shell scripts in the image."""

import stat
from pathlib import Path

import pytest

from .opt_ml import Channel
from .platform import JobEnd, TrainingJob
from .processing import process

pytestmark = pytest.mark.docker


def run(image: str, folder: Path, script: str, **more: object) -> tuple[TrainingJob, JobEnd]:
    """Run a shell script as a training job."""
    channels = more.pop("channels", {})
    job = TrainingJob(
        image=image,
        folder=folder,
        channels=channels,  # type: ignore[arg-type]
        entrypoint=["bash", "-c", script],
        **more,  # type: ignore[arg-type]
    )
    with job:
        return job, job.wait()


def objects(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def test_what_a_job_finds(image: str, tmp_path: Path) -> None:
    files = objects(tmp_path / "s3", "a/1", "b/2")
    script = """
    cd /opt/ml; stat -c '%U %a' input/config/hyperparameters.json input/data/train/a/1
    ls -d * input/data/*; ls -A output; cat input/config/resourceconfig.json; echo
    test -t 1 && echo terminal; ls /sys/class/net; env | grep ^TRAINING_JOB_ARN; hostname
    grep -c SM_ /proc/self/environ; touch input/data/fast/a/3
    """
    channels = {"train": Channel(files), "fast": Channel(files, "FastFile")}
    channels |= {"pipe": Channel(files, "Pipe")}
    job, end = run(image, tmp_path / "disks", script, channels=channels)
    lines = end.log.splitlines()
    assert lines[:2] == ["root 644", "root 644"]
    assert lines[2:5] == ["input", "input/data/fast", "input/data/pipe_0"]
    assert lines[5:9] == ["input/data/train", "input/data/train-manifest", "model", "output"]
    assert lines[9].startswith('{"current_host": "algo-1", "current_instance_type"')
    arn = f"arn:aws:sagemaker:eu-west-1:123456789012:training-job/{job.name}"
    assert lines[10:14] == ["lo", f"TRAINING_JOB_ARN={arn}", "aws", "0"]
    assert "Read-only file system" in lines[14]
    assert stat.S_ISFIFO((job.disk() / "input/data/pipe_0").stat().st_mode)


@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        ("echo why > /opt/ml/output/failure", "Completed", ""),
        ("printf 'é%.0s' {1..2000} > /opt/ml/output/failure; exit 3", "Failed", "é" * 1024),
        ("exit 3", "Failed", "AlgorithmError: , exit code: 1"),
    ],
)
def test_how_a_job_ends(image: str, tmp_path: Path, script: str, status: str, reason: str) -> None:
    _, end = run(image, tmp_path, script)
    assert (end.status, end.reason) == (status, reason), end.log


def test_checkpoints_come_and_go_but_not_at_the_end(image: str, tmp_path: Path) -> None:
    s3 = objects(tmp_path / "s3", "step/1", "step/2")
    script = """
    cd /mnt/saved; cat step/1; rm step/1; echo 3 > step/3; sleep 8; echo 4 > step/4
    """
    _, end = run(image, tmp_path / "disks", script, checkpoints=s3, checkpoint_path="/mnt/saved")
    assert end.log == "step/1"
    assert sorted(path.name for path in s3.rglob("?")) == ["2", "3"]


def test_hosts_know_each_other_and_share_the_objects(image: str, tmp_path: Path) -> None:
    files = objects(tmp_path / "s3", *"abcde")
    script = """
    grep -o '"hosts": [^]]*' /opt/ml/input/config/resourceconfig.json | head -1
    ls -m /opt/ml/input/data/train
    until getent hosts algo-1 algo-2 > /dev/null; do sleep 0.1; done; echo both
    until [ -e /opt/ml/output/leave ]; do sleep 0.1; done
    echo "$HOSTNAME" > /opt/ml/model/same
    """
    job = TrainingJob(
        image=image,
        folder=tmp_path / "disks",
        channels={"train": Channel(files, distribution="ShardedByS3Key")},
        entrypoint=["bash", "-c", script],
        hosts=["algo-2", "algo-1"],
    )
    with job:
        # A name is gone with its host, so nobody leaves before all have seen each other.
        for container in job.containers:
            container.wait_for("both")
        for host in job.hosts:
            (job.disk(host) / "output" / "leave").touch()
        end = job.wait()
    assert end.status == "Completed", end.log
    assert end.log.splitlines() == [
        '"hosts": ["algo-1", "algo-2"',
        "a",
        "both",
        '"hosts": ["algo-1", "algo-2"',
        "b, c, d, e",
        "both",
    ]
    with pytest.raises(AssertionError, match="two hosts have same"):
        job.artifact()


def test_a_processing_job_has_folders_of_its_own(image: str, tmp_path: Path) -> None:
    files = objects(tmp_path / "s3", "1")
    script = """
    cat /opt/ml/processing/in/1; ls /opt/ml/config; touch /opt/ml/processing/out/2
    echo why > /opt/ml/output/message; exit 3
    """
    end = process(
        image, tmp_path / "job", {"in": files}, ["out"], entrypoint=["sh"], arguments=["-c", script]
    )
    assert (end.status, end.reason) == ("Failed", "why\n")
    assert end.log == "1processingjobconfig.json\nresourceconfig.json\n"
    assert (tmp_path / "job" / "out" / "2").is_file()
