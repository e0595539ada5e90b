"""`alexmri aws upload`: what is there is not sent, and what is cut off goes on."""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from .conftest import BUCKET, Cloud, Run, client, error_of, keys

FILES = {f"A/{n}.png": f"picture {n}".encode() for n in range(30)} | {"groups.csv": b"path,subject"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "slices"
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / ".DS_Store").write_bytes(b"")
    return root


def sent(cloud: Cloud) -> list[str]:
    start = f"PUT /{BUCKET}/alexmri/data/"
    return [
        each.target.removeprefix(start) for each in cloud.requests if each.target.startswith(start)
    ]


def test_everything_arrives_once(cloud: Cloud, folder: Path, run: Run) -> None:
    done = run("upload", folder)
    address = done.stdout.splitlines()[-1]
    assert address.startswith(f"s3://{BUCKET}/alexmri/data/")
    fingerprint = address.rpartition("/")[2]
    found = {key.removeprefix("alexmri/data/") for key in keys()}
    assert found == {f"{fingerprint}/{name}" for name in FILES} | {f"{fingerprint}.json"}
    s3 = client("s3")
    for name, data in FILES.items():
        key = f"alexmri/data/{fingerprint}/{name}"
        stored = s3.get_object(Bucket=BUCKET, Key=key, ChecksumMode="ENABLED")
        assert stored["Body"].read() == data
        expected = base64.b64encode(hashlib.sha256(data).digest()).decode()
        assert stored["ChecksumSHA256"] == expected
    # The list, which says that all is there, was the last to come.
    assert sent(cloud)[-1] == f"{fingerprint}.json"
    cloud.requests.clear()
    again = run("upload", folder)
    assert again.stdout.splitlines()[-1] == address
    assert "all files are there already" in again.stdout
    assert sent(cloud) == []


def test_a_changed_file_is_all_that_is_sent(cloud: Cloud, folder: Path, run: Run) -> None:
    first = run("upload", folder).stdout.splitlines()[-1]
    (folder / "A" / "0.png").write_bytes(b"another picture")
    (folder / "A" / "1.png").rename(folder / "A" / "renamed.png")
    second = run("upload", folder)
    assert f"{len(FILES)} files: 1 sent, {len(FILES) - 1} copied within S3" in second.stdout
    address = second.stdout.splitlines()[-1]
    assert address != first
    s3 = client("s3")
    key = address.removeprefix(f"s3://{BUCKET}/") + "/A/renamed.png"
    assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == FILES["A/1.png"]
    # The first is as it was.
    assert len(keys(first.removeprefix(f"s3://{BUCKET}/") + "/")) == len(FILES)


def test_a_large_file_goes_in_parts(cloud: Cloud, tmp_path: Path, run: Run) -> None:
    root = tmp_path / "large"
    root.mkdir()
    data = bytes(range(256)) * 70_000
    (root / "large.npy").write_bytes(data)
    address = run("upload", root).stdout.splitlines()[-1]
    key = address.removeprefix(f"s3://{BUCKET}/") + "/large.npy"
    assert client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() == data
    assert len([target for target in cloud.targets() if target.startswith("PUT")]) > 3


def test_kill_9_in_the_middle_leaves_nothing_half_made(
    cloud: Cloud, folder: Path, run: Run
) -> None:
    enough, go_on = threading.Event(), threading.Event()
    count = []

    def hold(target: str) -> None:
        if target.startswith("PUT"):
            count.append(target)
            if len(count) > 10:
                enough.set()
                go_on.wait(20)

    cloud.before = hold
    command = [sys.executable, "-c", "from alexmri.cli import main; main()", "aws", "upload"]
    process = subprocess.Popen([*command, str(folder)], env=os.environ, start_new_session=True)
    assert enough.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cloud.before = lambda target: None
    there = [key for key in keys() if not key.endswith(".json")]
    assert 0 < len(there) < len(FILES)
    assert not [key for key in keys() if key.endswith(".json")]
    go_on.set()
    cloud.requests.clear()
    run("upload", folder)
    assert len(keys()) == len(FILES) + 1
    again = [name for name in sent(cloud) if not name.endswith(".json")]
    assert len(again) <= len(FILES) - len(there)


def test_nothing_is_taken_that_s3_cannot_hold(cloud: Cloud, folder: Path, run: Run) -> None:
    (folder / "link.png").symlink_to(folder / "groups.csv")
    assert "link.png is a link; replace it by a copy" in error_of(run("upload", folder, ok=False))
    shutil.rmtree(folder)
    folder.mkdir()
    assert "holds no files" in error_of(run("upload", folder, ok=False))


def test_a_bucket_that_is_not_there_is_named(cloud: Cloud, folder: Path, run: Run) -> None:
    told = error_of(run("--bucket", "gone", "upload", folder, ok=False))
    wanted = "make it with `alexmri aws setup`, or correct bucket in alexmri.toml"
    assert told == f"there is no such bucket; {wanted}"


def test_a_dry_run_shows_the_requests(cloud: Cloud, folder: Path, run: Run) -> None:
    plan = json.loads(run("--kms-key", "k", "upload", folder, "--dry-run").stdout)
    assert len(plan) == len(FILES) + 1
    request = plan[0]["request"]
    assert request["Key"].endswith("/A/0.png")
    assert request["ChecksumAlgorithm"] == "SHA256"
    assert request["SSEKMSKeyId"] == "k"
    assert cloud.requests == []
