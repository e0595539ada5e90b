"""One image for all docker tests, and the job it is run on."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_helpers import REPOSITORY, Docker, call, write_hyperparameters, write_slices

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
    """Build the product's image, once."""
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
