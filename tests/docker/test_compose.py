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
