"""What SageMaker's SDKs need to drive an image in local mode, and to leave nothing behind."""

import json
import os
import runpy
import socket
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

try:
    from sagemaker.local import LocalSession
    from sagemaker.local.image import _SageMakerContainer

    SDK = "SDK 2"
    # It finds `docker compose` by the word "v2" in what the version command prints, which neither
    # Debian's 2.26.1-4 nor a later major version has (aws/sagemaker-python-sdk#3659, #5739). The
    # list must be a new one each time, since the SDK adds to it.
    _SageMakerContainer._get_compose_cmd_prefix = staticmethod(lambda: ["docker", "compose"])
except ImportError:
    from sagemaker.core.local.local_session import LocalSession

    SDK = "SDK 3"

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
REGION = "us-east-1"
# Syntax is all that local mode looks at.
ROLE = "arn:aws:iam::111122223333:role/any"
BUCKET = "conformance"
CLASSES = ("MildDemented", "NonDemented")
# The smallest training; the examples of docs/ leave Weights & Biases as it is.
HYPERPARAMETERS = {"epochs": "1", "batch_size": "16", "wandb_mode": "disabled"}


def without_account(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return an environment in which no account and no host but this one can be reached.

    Keys are made up, for moto's server. The discard port answers nobody, so that whatever a client
    sends elsewhere (telemetry, the look-up of a bucket's owner) fails at once instead of leaving.
    """
    config = folder / "sagemaker.yaml"
    opted_out = {"SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    config.write_text(json.dumps({"SchemaVersion": "1.0"} | opted_out), encoding="utf-8")
    nowhere = "http://127.0.0.1:9"
    kept = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(config),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(config),
        "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "localhost,127.0.0.1",
    }


class LoopbackPort(int):
    """A port number that Docker publishes for this machine alone.

    The SDKs write it as a string into the compose file ("%s:8080"), which would open it to the
    network, and as a number into the address they ask.
    """

    def __str__(self) -> str:
        return f"127.0.0.1:{int(self)}"


def free_port() -> LoopbackPort:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return LoopbackPort(probe.getsockname()[1])


def local_session(root: Path, s3: str | None = None, kind: type = LocalSession) -> Any:
    """Return a session with containers' files below `root`, endpoints on a free port, S3 at `s3`.

    Its config is set by hand, since the SDKs would read one from the home of whoever runs this.
    """
    session = kind(boto3.Session(region_name=REGION), default_bucket=BUCKET, s3_endpoint_url=s3)
    session.config = {
        "local": {"local_code": True, "container_root": str(root), "serving_port": free_port()}
    }
    return session


def write_slices(folder: Path, people: int = 10, slices: int = 2, seed: int = 7) -> Path:
    """Fill `folder` with class folders of PNG and JPEG pictures, named as Kaggle names slices."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        hole = (x / (0.35 - 0.2 * number)) ** 2 + (y / 0.3) ** 2 < 1
        brain = 20 + 140 * ((x / 0.7) ** 2 + (y / 0.9) ** 2 < 1) - 90 * hole
        for person in range(1, people + 1):
            ending = "png" if person % 2 else "jpg"
            for slice_ in range(1, slices + 1):
                noisy = np.clip(brain + generator.normal(0, 8, x.shape), 0, 255)
                path = folder / label / f"{slice_} ({person}).{ending}"
                Image.fromarray(noisy.astype(np.uint8)).save(path)
    return folder


def names_in(archive: Path) -> set[str]:
    """Return the names in a tar file, which must be of files and folders only."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    return {member.name for member in members}


def failure_in(output: Path) -> str:
    """Return what a failed training told the platform, from its output.tar.gz.

    Local mode forgets a job that failed; `describe_training_job` does not know it.
    """
    with tarfile.open(output) as tar:
        file = tar.extractfile("failure")
        assert file
        return file.read().decode("utf-8")


def check_answer(answer: dict[str, Any], pictures: int = 1) -> None:
    """Check that each picture got one of the classes, with probabilities that add up to 1."""
    assert len(answer["predictions"]) == pictures
    for prediction in answer["predictions"]:
        assert prediction["label"] in CLASSES
        assert set(prediction["probabilities"]) == set(CLASSES)
        assert abs(sum(prediction["probabilities"].values()) - 1) < 1e-3


def remove_containers(root: Path) -> None:
    """Remove the containers of compose files below `root`, which the SDKs leave behind."""
    folder = "com.docker.compose.project.working_dir"
    listed = ["docker", "ps", "--all", "--format", f'{{{{.ID}}}} {{{{.Label "{folder}"}}}}']
    lines = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines()
    for number, _, started_in in (line.partition(" ") for line in lines):
        if Path(started_in).is_relative_to(root):
            subprocess.run(["docker", "rm", "--force", number], check=True, capture_output=True)


def run_example(name: str, image: str, data: Path, folder: Path) -> dict[str, Any]:
    """Run a script of docs/examples in `folder`, as its own text says; return its variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("IMAGE", image)
        patch.setenv("DATA", str(data))
        patch.setenv("PORT", str(int(free_port())))
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")
