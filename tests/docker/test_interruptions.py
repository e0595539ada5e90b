"""A disk that is really full, and stops by Docker that leave no trace in the model."""

import re
import subprocess
from pathlib import Path

import pytest

from .docker_helpers import Docker

pytestmark = pytest.mark.docker
# Less than two checkpoints of about 300 MB, more than one.
DISK = "/opt/ml/checkpoints:size=450m"


def mounts(job: Path, own: Path) -> list[str]:
    """Return the options that give a container the input of `job` and an output of its own."""
    folders = {"input": job / "input"} | {
        name: own / name for name in ("model", "output", "checkpoints")
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    return [f"--volume={folder}:/opt/ml/{name}" for name, folder in folders.items()]


def test_a_full_disk_leaves_the_last_good_checkpoint(
    docker: Docker, image: str, docker_job: Path, tmp_path: Path
) -> None:
    options = [o for o in mounts(docker_job, tmp_path) if "checkpoints" not in o]
    command = ["train", "--epochs", "3", "--checkpoint-every-epochs", "1"]
    done = docker("run", "--rm", *options, "--tmpfs", DISK, image, *command, check=False)
    assert done.returncode == 2
    failure = (tmp_path / "output" / "failure").read_text(encoding="utf-8")
    assert re.search(r"the disk of /opt/ml/checkpoints is full: a checkpoint needs \d+ MB", failure)
    assert re.search(r"step-\d{8} is intact", failure)


def test_stops_by_docker_change_no_byte_of_the_model(
    docker: Docker, image: str, docker_job: Path, containers: list[str], tmp_path: Path
) -> None:
    options = [*mounts(docker_job, tmp_path), "--env=ALEXMRI_STOP_GRACE_SECONDS=0"]
    name = f"alexmri-stops-{tmp_path.name}"
    containers.append(name)
    for line in ("alexmri train:", "2 epochs of", "epoch=1;"):
        command = ["docker", "run", "--rm", "--name", name, *options, image, "train"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for printed in process.stdout:
                if printed.startswith(line):
                    docker("stop", "--time", "120", name)
                    break
            process.stdout.read()
        assert process.returncode == 0
    docker("run", "--rm", *options, image, "train")
    for file in ("model.safetensors", "model.json"):
        expected = (docker_job / "model" / file).read_bytes()
        assert (tmp_path / "model" / file).read_bytes() == expected
