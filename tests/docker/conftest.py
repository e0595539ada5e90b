"""One image for all docker tests, and the jobs it is run on."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alexmri.data.phantom import write_demo_data

from .docker_helpers import REPOSITORY, Docker, call, write_hyperparameters, write_slices
from .opt_ml import Channel
from .platform import JobEnd, TrainingJob

# Stands in for nvidia/cuda where no image can be pulled.
STAND_IN = "local/cuda-base:bookworm"
IMAGE = "alexmri:docker-tests"


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Return a function that runs `docker …`; without an engine skip, and fail in CI."""
    if not shutil.which("docker") or call("docker", "info", check=False).returncode != 0:
        reason = "no Docker engine answers `docker info`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return lambda *arguments, **more: call("docker", *arguments, **more)


@pytest.fixture(scope="session")
def base_image(docker: Docker) -> str:
    """Return $BASE_IMAGE, or the stand-in, or what the Dockerfile names if it can be pulled."""
    if "BASE_IMAGE" in os.environ:
        return os.environ["BASE_IMAGE"]
    if docker("image", "inspect", STAND_IN, check=False).returncode == 0:
        return STAND_IN
    first = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").partition("ARG BASE_IMAGE=")[2]
    return first.splitlines()[0]


@pytest.fixture(scope="session")
def image(docker: Docker, base_image: str) -> str:
    """Return $IMAGE, or build the product's image, once."""
    if "IMAGE" in os.environ:
        return os.environ["IMAGE"]
    docker("build", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", IMAGE, str(REPOSITORY))
    return IMAGE


@pytest.fixture(scope="session")
def docker_job(docker: Docker, image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made /opt/ml tree after `train` ran on it without a network; tests leave it be."""
    root = tmp_path_factory.mktemp("job") / "ml"
    write_slices(root / "input" / "data" / "training")
    write_hyperparameters(root, epochs="2", batch_size="16", seed="5")
    docker("run", "--rm", "--network", "none", "--volume", f"{root}:/opt/ml", image, "train")
    return root


@pytest.fixture
def containers(docker: Docker) -> Iterator[list[str]]:
    """Names of containers a test starts; they are removed after it."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "--force", name, check=False)


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with a few made-up people; tests leave them be."""
    folder = tmp_path_factory.mktemp("data") / "slices"
    write_demo_data(folder, subjects={"MildDemented": 4, "NonDemented": 4}, slices=6)
    return folder


@dataclass(frozen=True)
class Training:
    """A training that ran to its end, and what was seen of its processes meanwhile."""

    job: TrainingJob
    end: JobEnd
    environment: dict[str, str]
    libraries: str


@pytest.fixture(scope="session")
def training(
    image: str, slices: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Training]:
    """A training as an SDK starts it, with all that it brings along; tests leave it be."""
    users_code = tmp_path_factory.mktemp("code")
    (users_code / "train.py").write_text("raise SystemExit('nobody runs this')", encoding="utf-8")
    job = TrainingJob(
        image=image,
        folder=tmp_path_factory.mktemp("training"),
        channels={
            "train": Channel(slices),
            "code": Channel(users_code),
            "sm_drivers": Channel(users_code),
        },
        hyperparameters={
            "epochs": "2",  # a plain string
            "batch_size": "16.0",  # of a tuning job
            "learning_rate": "1e-2",
            "optimizer": '"adamw"',  # JSON in a string
            "group-regex": "null",
            "sagemaker_program": '"train.py"',
            "sagemaker_region": '"eu-west-1"',
            "_tuning_objective_metric": "val_macro_f1",
        },
        environment={"ALEXMRI_SEED": "5", "SM_LOG_LEVEL": "10"},
    )
    with job:
        job.first.wait_for("data: ")
        variables = job.first.worker("tr '\\0' '\\n' < /proc/$worker/environ").splitlines()
        libraries = job.first.execute("cat /proc/1/maps")
        pairs = (line.partition("=") for line in variables)
        environment = {name: value for name, _, value in pairs}
        yield Training(job, job.wait(), environment, libraries)
