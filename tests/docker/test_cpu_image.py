"""The image without CUDA: small, and it trains, measures and serves like the other one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .container import new_name
from .docker_helpers import (
    REPOSITORY,
    Docker,
    Result,
    call,
    copy_of_repository,
    wait_for,
    write_hyperparameters,
    write_slices,
)
from .test_confined import CONFINED, own

pytestmark = pytest.mark.docker
GIGABYTE = 10**9
# Not the locked version: a build without CUDA that package indexes beside PyTorch's own may have.
WHEEL = "torch==2.13.0+cpu"
# Asks from inside, since the container has no network.
CLIENT = """
import json, sys, urllib.request
def ask(path, body=None, kind="image/jpeg"):
    request = urllib.request.Request("http://127.0.0.1:8080" + path, body, {"Content-Type": kind})
    return urllib.request.urlopen(request, timeout=30).read()
if sys.argv[1] == "ping":
    ask("/ping")
else:
    picture = open(sys.argv[1], "rb").read()
    print(ask("/invocations", picture).decode())
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with a wheel of PyTorch without CUDA below wheels/."""
    folder = copy_of_repository(tmp_path_factory.mktemp("cpu") / "repository")
    wheels = folder / "wheels"
    if list((REPOSITORY / "wheels").glob("torch-*+cpu-*.whl")):
        shutil.copytree(REPOSITORY / "wheels", wheels)
        return folder
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels)
    done = subprocess.run((*command, WHEEL), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index here has {WHEEL}: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def cpu_image(docker: Docker, base_image: str, repository: Path) -> str:
    name = "alexmri:cpu-docker-tests"
    arguments = (f"BASE_IMAGE={base_image}", "TORCH_CUDA=cpu", "TORCH_WHEELS=wheels")
    options = [word for each in arguments for word in ("--build-arg", each)]
    docker("build", *options, "--tag", name, str(repository))
    return name


@pytest.fixture(scope="module")
def job(
    docker: Docker, cpu_image: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """An /opt/ml tree after `train` ran on it without network, rights and writable root."""
    root = tmp_path_factory.mktemp("job")
    write_slices(root / "input" / "data" / "training")
    write_hyperparameters(root, epochs="1", batch_size="16")
    own(root)
    trained = docker("run", "--rm", *CONFINED, "--volume", f"{root}:/opt/ml", cpu_image, "train")
    return root, trained


def test_it_is_small_and_holds_nothing_of_cuda(docker: Docker, cpu_image: str) -> None:
    facts = json.loads(docker("image", "inspect", cpu_image).stdout)[0]
    assert facts["Size"] < 1.6 * GIGABYTE
    script = "find / -xdev -name 'libcu*' -o -xdev -name 'libnccl*' -o -xdev -name 'libnv*'"
    found = docker("run", "--rm", cpu_image, "sh", "-c", script).stdout.split()
    # curl and NVIDIA's base have names that begin alike.
    assert not [name for name in found if name.startswith("/opt/")]
    installed = json.loads(docker("run", "--rm", cpu_image, "pip", "list", "--format=json").stdout)
    packages = {row["name"] for row in installed}
    assert "torch" in packages
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    assert "torchvision" not in packages
    table = call(sys.executable, str(REPOSITORY / "bench" / "image.py"), cpu_image).stdout
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in table.splitlines()}
    assert float(rows["all"].replace(",", "")) == pytest.approx(facts["Size"] / 1e6, rel=0.01)
    assert "– NVIDIA's CUDA libraries" not in rows


def test_it_trains_and_evaluates(
    docker: Docker, cpu_image: str, job: tuple[Path, Result], tmp_path: Path
) -> None:
    root, trained = job
    assert "GPU: none, the CPU computes" in trained.stdout or "built without CUDA" in trained.stdout
    assert "Traceback" not in trained.stdout + trained.stderr
    processing = tmp_path / "processing"
    shutil.copytree(root / "model", processing / "model")
    shutil.copytree(root / "input" / "data" / "training", processing / "test")
    (processing / "evaluation").mkdir()
    own(tmp_path)
    docker("run", "--rm", *CONFINED, "--volume", f"{tmp_path}:/opt/ml", cpu_image, "evaluate")
    evaluation = json.loads((processing / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert evaluation["test"]["images"] == len(list((processing / "test").glob("*/*.jpg"))) > 0


@pytest.mark.parametrize("batch", ["", "true"], ids=["endpoint", "batch transform"])
def test_it_serves(
    docker: Docker,
    cpu_image: str,
    job: tuple[Path, Result],
    containers: list[str],
    batch: str,
) -> None:
    root, _ = job
    name = new_name()
    containers.append(name)
    mounts = ("--volume", f"{root / 'model'}:/opt/ml/model:ro", "--env", f"SAGEMAKER_BATCH={batch}")
    picture = next((root / "input" / "data" / "training" / "NonDemented").iterdir())
    mounts = (*mounts, "--volume", f"{picture}:/picture.jpg:ro")
    docker("run", "--detach", "--name", name, *CONFINED, *mounts, cpu_image, "serve")
    ask = ("exec", name, "python3", "-c", CLIENT)
    wait_for(lambda: docker(*ask, "ping", check=False).returncode == 0)
    (prediction,) = json.loads(docker(*ask, "/picture.jpg").stdout)["predictions"]
    assert prediction["label"] in ("MildDemented", "NonDemented")


def test_a_required_gpu_is_refused_with_the_image_that_helps(
    docker: Docker, cpu_image: str, job: tuple[Path, Result]
) -> None:
    commands = ("train", "serve", "evaluate", "preflight")
    script = f"for name in {' '.join(commands)}; do $name; echo code=$?; done"
    mount = ("--volume", f"{job[0] / 'input'}:/opt/ml/input:ro")
    options = ("--rm", "--env", "ALEXMRI_REQUIRE_GPU=1", *mount)
    result = docker("run", *options, cpu_image, "sh", "-c", script)
    assert result.stdout.count("code=2\n") == len(commands)
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == len(commands)
    for line in told:
        assert "ALEXMRI_REQUIRE_GPU is 1, but PyTorch " in line
        assert "is built without CUDA; use an image built with TORCH_CUDA=cu130" in line


def test_a_build_that_does_not_know_where_pytorch_is_says_what_to_name(
    docker: Docker, cpu_image: str, base_image: str, repository: Path
) -> None:
    arguments = ("--build-arg", f"BASE_IMAGE={base_image}", "--build-arg", "TORCH_CUDA=cpu")
    result = docker("build", *arguments, "--tag", f"{cpu_image}-none", str(repository), check=False)
    assert result.returncode != 0
    assert "TORCH_INDEX: name the index of the builds without CUDA, or TORCH_WHEELS" in (
        result.stderr
    )
