"""The compose files from a copy of the repository, as README tells it, on a machine without GPU."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .docker_helpers import Docker, Result, ask, call, copy_of_repository, write_slices

pytestmark = pytest.mark.docker
FILES = ("-f", "docker-compose.yml", "-f", "docker-compose.cpu.yml")
CLUSTER = ("-f", "docker-compose.cluster.yml")


class Compose:
    """`docker compose …` in a copy of the repository, under names of its own."""

    def __init__(self, folder: Path, base_image: str) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # Root can give its folders to somebody else; anybody can be himself.
        self.user = 12345 if os.getuid() == 0 else os.getuid()
        self.environment = os.environ | {
            "BASE_IMAGE": base_image,
            "COMPOSE_PROJECT_NAME": "alexmri-docker-tests",
            "IMAGE": "alexmri-docker-tests",
            "PORT": str(self.port),
            "HOST_UID": str(self.user),
            "HOST_GID": str(self.user),
        }

    def __call__(
        self, *arguments: str, files: Sequence[str] = FILES, check: bool = True, **more: str
    ) -> Result:
        command = ("docker", "compose", *files, *arguments)
        return call(*command, check=check, cwd=self.folder, env=self.environment | more)


@pytest.fixture
def compose(docker: Docker, image: str, base_image: str, tmp_path: Path) -> Iterator[Compose]:
    compose = Compose(copy_of_repository(tmp_path / "repository"), base_image)
    for name in ("data", "runs/model", "runs/output", "runs/checkpoints"):
        (compose.folder / name).mkdir(parents=True)
        if os.getuid() == 0:
            os.chown(compose.folder / name, compose.user, compose.user)
    yield compose
    compose("down", "--timeout", "5", check=False)


@pytest.fixture
def without_nvidia(docker: Docker) -> None:
    if "nvidia" in docker("info", "--format", "{{json .Runtimes}}").stdout:
        pytest.skip("this Docker engine has the NVIDIA runtime")


def test_train_then_serve(compose: Compose) -> None:
    write_slices(compose.folder / "data")
    trained = compose("run", "--rm", "train", "train", "--epochs", "1", "--batch-size", "16")
    assert "SYNTHETIC" not in trained.stdout
    report = compose.folder / "runs" / "output" / "data" / "report.html"
    assert report.stat().st_uid == compose.user
    assert report.stat().st_mode & 0o444 == 0o444

    compose("up", "--detach", "--wait", "serve")
    picture = next((compose.folder / "data" / "NonDemented").iterdir())
    status, answer = ask(compose.port, "/invocations", picture.read_bytes())
    assert status == 200
    assert answer["predictions"][0]["label"] in ("MildDemented", "NonDemented")
    compose("stop", "serve")
    (container,) = compose("ps", "--all", "--quiet", "serve").stdout.split()
    assert call("docker", "wait", container).stdout.strip() == "0"


def test_without_data_it_trains_on_demo_data_and_says_so(compose: Compose) -> None:
    environment = ("--env", "ALEXMRI_EPOCHS=1", "--env", "ALEXMRI_BATCH_SIZE=256")
    trained = compose("run", "--rm", *environment, "train")
    assert "SYNTHETIC" in trained.stdout
    assert len(list((compose.folder / "data" / ".demo").glob("*/*.jpg"))) == 1280
    model = json.loads((compose.folder / "runs" / "model" / "model.json").read_text("utf-8"))
    assert len(model["classes"]) == 4


def test_two_hosts_train_one_model(compose: Compose) -> None:
    write_slices(compose.folder / "data")
    up = ("up", "--abort-on-container-exit")
    try:
        trained = compose(*up, files=CLUSTER, ARGS="--epochs 1 --batch-size 16")
        hosts = compose("ps", "--all", "--quiet", files=CLUSTER).stdout.split()
        assert call("docker", "wait", *hosts).stdout.split() == ["0", "0"]
    finally:
        compose("down", files=CLUSTER)
    for rank, host in enumerate(("algo-1", "algo-2")):
        assert f"{host} is host {rank} of algo-1, algo-2" in trained.stdout
    report = compose.folder / "runs" / "output" / "data" / "report.html"
    assert report.stat().st_uid == compose.user
    assert (compose.folder / "runs" / "model" / "model.json").is_file()


def test_both_files_are_valid_and_only_the_first_reserves_a_gpu(compose: Compose) -> None:
    def services(*files: str) -> dict[str, dict[str, object]]:
        command = ("docker", "compose", *files, "--profile", "test", "config", "--format", "json")
        printed = call(*command, cwd=compose.folder, env=compose.environment).stdout
        content: dict[str, dict[str, object]] = json.loads(printed)["services"]
        return content

    with_gpu, without = services(*FILES[:2]), services(*FILES)
    assert set(with_gpu) == set(without) == {"train", "serve", "test"}
    assert all("devices" in json.dumps(service["deploy"]) for service in with_gpu.values())
    assert not any(service.get("deploy") for service in without.values())
    assert "ALEXMRI_DEMO_DATA" not in json.dumps(without["serve"])


@pytest.mark.parametrize(
    ("variables", "image", "build"),
    [
        ({}, "alexmri", ""),
        ({"TORCH_INDEX": "https://example.org/cpu"}, "alexmri:cpu", "cpu"),
        ({"TORCH_WHEELS": "wheels"}, "alexmri:cpu", "cpu"),
        ({"TORCH_INDEX": "https://example.org/a", "TORCH_CUDA": "cu126"}, "alexmri:cu126", "cu126"),
    ],
)
def test_without_a_gpu_the_image_is_the_small_one_where_its_pytorch_can_be_had(
    compose: Compose, variables: dict[str, str], image: str, build: str
) -> None:
    config = compose("config", "--format", "json", **variables, IMAGE="").stdout
    for service in ("train", "serve"):
        found = json.loads(config)["services"][service]
        assert found["image"] == image
        assert found["build"]["args"]["TORCH_CUDA"] == build


def test_docker_without_nvidias_runtime_refuses_the_reservation(
    compose: Compose, without_nvidia: None
) -> None:
    refused = compose("run", "--rm", "train", files=FILES[:2], check=False)
    assert refused.returncode != 0
    message = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
    assert message in refused.stderr
    page = (compose.folder / "docs" / "start.md").read_text(encoding="utf-8")
    assert message in page


@pytest.mark.parametrize("service", ["train", "serve"])
def test_a_required_gpu_is_required_under_compose_too(
    compose: Compose, without_nvidia: None, service: str
) -> None:
    ended = compose("run", "--rm", service, check=False, ALEXMRI_REQUIRE_GPU="1")
    assert ended.returncode == 2
    assert "ALEXMRI_REQUIRE_GPU is 1, but there is no NVIDIA driver on this machine" in ended.stderr


@pytest.mark.parametrize(
    ("code", "says", "told"),
    [
        (9, "NVIDIA-SMI has failed", "NVIDIA-SMI has failed"),
        (0, "GPU 0: NVIDIA A10G", "Docker has no NVIDIA runtime; install NVIDIA's container"),
    ],
    ids=["the driver does not answer", "Docker has no NVIDIA runtime"],
)
def test_make_train_says_why_a_gpu_is_not_used(
    compose: Compose, without_nvidia: None, tmp_path: Path, code: int, says: str, told: str
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n", encoding="utf-8")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    environment = compose.environment | {"PATH": path, "ALEXMRI_REQUIRE_GPU": "1"}
    made = call("make", "train", "RUNTIME=docker", check=False, cwd=compose.folder, env=environment)
    assert f"make: the GPU of this machine is not used: {told}" in made.stderr
    assert made.returncode != 0
    assert "ALEXMRI_REQUIRE_GPU is 1, but there is no NVIDIA driver" in made.stdout + made.stderr
