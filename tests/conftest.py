"""Fixtures that several test modules share."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from PIL import Image
from werkzeug.serving import make_server

from alexmri.data.phantom import write_demo_data

pytest_plugins = ["tests.browser"]
# Those run in environments of their own, without alexmri: `make conformance-clients`.
collect_ignore = ["clients"]
# Tests in these folders start servers, containers or a simulated AWS. Tests with these fixtures
# start Chromium, a training or a simulated S3, or read thousands of real slices. Other slow tests
# are marked where they stand.
SLOW_FOLDERS = {"aws", "docker", "process"}
SLOW_FIXTURES = {"browser", "finished", "real_slices", "s3_server"}
REAL_SLICES = Path(__file__).parents[2] / "shared" / "data" / "alzheimer-mri"


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes (pytest -n), and what it starts, one core.

    PyTorch's threads wait for one another by spinning, and where two trainings share all cores
    they mostly do that.
    """
    if name := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(name.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        fixtures = set(getattr(item, "fixturenames", ()))
        if folder in SLOW_FOLDERS or fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own cache, and no settings or keys from whoever runs the tests."""
    monkeypatch.setenv("ALEXMRI_CACHE_DIR", str(tmp_path / "cache"))
    for name in os.environ:
        if name.startswith(("WANDB_", "ALEXMRI_", "AWS_")) and name != "ALEXMRI_CACHE_DIR":
            monkeypatch.delenv(name)
    # No machine's own keys or role either.
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo data set: 4 classes, 3 people each, 8 slices a person."""
    folder = tmp_path_factory.mktemp("demo") / "slices"
    people = {"MildDemented": 3, "ModerateDemented": 3, "NonDemented": 3, "VeryMildDemented": 3}
    write_demo_data(folder, subjects=people, slices=8)
    return folder


@pytest.fixture(scope="session")
def real_slices() -> Path:
    """The real slices developers have; their people may not be passed on with the code."""
    if not REAL_SLICES.is_dir():
        reason = f"the real slices are not in {REAL_SLICES}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL_SLICES


class S3Server:
    """moto's S3 on this machine's loopback; what it holds outlives its stops."""

    def __init__(self) -> None:
        self._port = 0
        self._open = threading.Event()
        self.start()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        application = DomainDispatcherApplication(create_backend_app)

        def gate(environment: Any, start_response: Any) -> Any:
            self._open.wait()
            return application(environment, start_response)

        self._server = make_server("127.0.0.1", self._port, gate, threaded=True)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.resume()

    def stop(self) -> None:
        """Refuse connections until `start`."""
        self._server.shutdown()
        self._thread.join()

    def pause(self) -> None:
        """Keep callers waiting until `resume`: connections are taken and not answered."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()


class Bucket:
    """A bucket of one test: what others may do to it behind alexmri's back."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.server = server
        self.client: Any = boto3.client("s3")
        self.client.create_bucket(Bucket=name)
        self.name = name
        self.url = f"s3://{name}/runs/one"

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [each["Key"].removeprefix("runs/one/") for each in found]

    def read(self, name: str) -> bytes:
        answer = self.client.get_object(Bucket=self.name, Key=f"runs/one/{name}")
        return bytes(answer["Body"].read())

    def put(self, name: str, data: bytes, **more: object) -> None:
        self.client.put_object(Bucket=self.name, Key=f"runs/one/{name}", Body=data, **more)

    def remove(self, name: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"runs/one/{name}")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(
    s3_server: S3Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """An empty bucket, with the variables by which boto3 finds it."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return Bucket(s3_server, f"bucket-{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def make_images(tmp_path: Path) -> "ImageMaker":
    return ImageMaker(tmp_path / "images")


class ImageMaker:
    """Writes small pictures of noise, each unlike any other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self._generator = np.random.default_rng(0)

    def __call__(self, *names: str, mode: str = "L", size: tuple[int, int] = (40, 40)) -> Path:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = self._generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(path)
        return self.root


@pytest.fixture(scope="session")
def twelve_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 12 people with 32 slices each."""
    folder = tmp_path_factory.mktemp("twelve-people") / "slices"
    write_demo_data(folder, subjects={"MildDemented": 4, "NonDemented": 4, "VeryMildDemented": 4})
    return folder
