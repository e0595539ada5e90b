"""What the tests of both SDK generations share: image, pictures, S3, and a world without AWS."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from harness import BUCKET, REGION, remove_containers, without_account, write_slices
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session", autouse=True)
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Take account and network from everything below, the examples of docs/ included."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(without_account(before, tmp_path_factory.mktemp("settings")))
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def image() -> str:
    """Return the image under test, which `make conformance-clients` builds and names in $IMAGE."""
    if "IMAGE" not in os.environ:
        pytest.fail("$IMAGE names no image; run these tests by `make conformance-clients`")
    return os.environ["IMAGE"]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 40 pictures; tests leave them be."""
    return write_slices(tmp_path_factory.mktemp("data") / "slices")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the files of containers, which are removed after the last test of the module."""
    folder = tmp_path_factory.mktemp("containers")
    yield folder
    remove_containers(folder)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The one bucket of moto's server at `address`, with class folders below data/."""

    address: str
    client: Any

    def names(self, prefix: str) -> set[str]:
        """Return the names below `prefix`."""
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return {entry["Key"].removeprefix(prefix) for entry in listed}

    def read(self, name: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return content


@pytest.fixture(scope="session")
def bucket(data: Path, no_account: None) -> Iterator[Bucket]:
    # It tells every request, which would bury what a test has to say.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=address, region_name=REGION)
    client.create_bucket(Bucket=BUCKET)
    for path in data.rglob("*.*"):
        client.upload_file(str(path), BUCKET, f"data/{path.relative_to(data)}")
    yield Bucket(address, client)
    server.stop()
