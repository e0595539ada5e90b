"""One image for all docker tests, and the trees it is run on."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alexmri.data.phantom import write_demo_data

REPOSITORY = Path(__file__).parents[2]
# Stands in for nvidia/cuda where no image can be pulled.
STAND_IN = "local/cuda-base:bookworm"
IMAGE = "alexmri:docker-tests"
SEED = "5"

Docker = Callable[..., "subprocess.CompletedProcess[str]"]


def call(*command: str, check: bool = True, **more: object) -> "subprocess.CompletedProcess[str]":
    """Run a command; when it fails, the test fails with all it printed."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, **more)  # type: ignore[call-overload]
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
    return result  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Return a function that runs `docker ...`; skip where there is no engine, fail in CI."""
    found = shutil.which("docker") and call("docker", "info", check=False).returncode == 0
    if not found:
        reason = "no Docker engine answers `docker info`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return lambda *arguments, **more: call("docker", *arguments, **more)


@pytest.fixture(scope="session")
def base_image(docker: Docker) -> str:
    given = os.environ.get("BASE_IMAGE")
    if given:
        return given
    if docker("image", "inspect", STAND_IN, check=False).returncode == 0:
        return STAND_IN
    return pytest.skip("set BASE_IMAGE to an image this engine has or can pull")


@pytest.fixture(scope="session")
def image(docker: Docker, base_image: str) -> str:
    """Build the product's image once."""
    docker("build", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", IMAGE, str(REPOSITORY))
    return IMAGE


def real_or_made_up(folder: Path) -> None:
    """Fill `folder` with a few real slices where a developer has them, else with made-up ones."""
    real = REPOSITORY.parent / "shared" / "data" / "alzheimer-mri"
    if not real.is_dir():
        people = {"MildDemented": 4, "NonDemented": 4}
        write_demo_data(folder, subjects=people, slices=8)
        return
    for label in ("MildDemented", "NonDemented"):
        (folder / label).mkdir(parents=True)
        for person in range(1, 6):
            for path in sorted((real / label).glob(f"* ({person}).jpg"))[:8]:
                shutil.copy(path, folder / label / path.name)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made /opt/ml tree with string hyperparameters; `train` is yet to run."""
    root = tmp_path_factory.mktemp("job") / "ml"
    real_or_made_up(root / "input" / "data" / "training")
    write_hyperparameters(root, epochs="2", batch_size="16", seed=SEED)
    return root


def write_hyperparameters(root: Path, **values: str) -> None:
    path = root / "input" / "config" / "hyperparameters.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="session")
def trained(docker: Docker, image: str, job: Path) -> Path:
    """The tree after `docker run IMAGE train` without a network."""
    docker("run", "--rm", "--network", "none", "--volume", f"{job}:/opt/ml", image, "train")
    return job


@pytest.fixture
def containers(docker: Docker) -> Iterator[list[str]]:
    """Names of containers a test starts; they are removed after it."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "--force", name, check=False)


def get(url: str, body: bytes | None = None, content_type: str = "image/jpeg") -> tuple[int, bytes]:
    """Ask once; return status and body, or status 0 where nobody listens."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def alexmri(*arguments: str) -> None:
    """Run the command line outside any container."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "code")}
    script = "from alexmri.cli import main; main()"
    call(sys.executable, "-c", script, *arguments, env=environment)
