"""Send W&B runs that jobs kept offline from S3 to W&B: each once, whenever it is interrupted."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alexmri.aws.client import Aws
from alexmri.aws.jobs import describe, fetch, results_address
from alexmri.aws.names import bucket_and_key, digest_of
from alexmri.contract.archive import unpack
from alexmri.errors import UserError
from alexmri.terminal import Terminal

ARCHIVE = "output.tar.gz"
# A run beside others in S3, as a checkpoint folder or a plain copy holds it.
LOOSE = re.compile(r"(.*/offline-run-[^/]+)/(.+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Where runs are: an archive, or the files of one run that lie in S3 as they are."""

    address: str
    version: str
    loose: tuple[str, ...] = ()


def find_sources(aws: Aws, what: str) -> list[Source]:
    """Return the sources of a job, or below a prefix s3://….

    Raises:
        UserError: the job has no results, or nothing is there.
    """
    if not what.startswith("s3://"):
        address = results_address(describe(aws, what), ARCHIVE)
        bucket, key = bucket_and_key(address)
        found = aws.call_or_none("s3", "head_object", {"Bucket": bucket, "Key": key})
        if found is None:
            raise UserError(f"{what} has left no results: there is no {address}")
        return [Source(address, found["ETag"])]
    bucket, prefix = bucket_and_key(what)
    archives, loose = [], dict[str, dict[str, str]]()
    listed = aws.pages("s3", "list_objects_v2", {"Bucket": bucket, "Prefix": prefix}, "Contents")
    for each in listed:
        key = str(each["Key"])
        if key.rpartition("/")[2] == ARCHIVE:
            archives.append(Source(f"s3://{bucket}/{key}", each["ETag"]))
        elif match := LOOSE.fullmatch(key):
            loose.setdefault(match.group(1), {})[match.group(2)] = each["ETag"]
    runs = [
        Source(f"s3://{bucket}/{folder}", digest_of(files, 16), tuple(sorted(files)))
        for folder, files in loose.items()
    ]
    if not archives and not runs:
        raise UserError(f"there is neither {ARCHIVE} nor an offline run below {what}")
    return archives + runs


def sync(aws: Aws, sources: list[Source], terminal: Terminal) -> int:
    """Send every run that is not marked as sent; return how many were.

    A mark is written after W&B took a run. Killed between the two, the run is sent once more under
    the same id, which W&B takes for the same run.
    """
    wandb = _wandb()
    sent = 0
    for source in sources:
        if _is_marked(aws, source.version):
            terminal.say(f"{source.address}: sent before")
            continue
        with tempfile.TemporaryDirectory(prefix="alexmri-wandb-") as folder:
            for run in _runs(aws, source, Path(folder)):
                if _is_marked(aws, run.name):
                    terminal.say(f"{run.name}: sent before")
                    continue
                done = subprocess.run([wandb, "sync", str(run)], check=False)  # noqa: S603
                if done.returncode:
                    raise UserError(
                        f"`wandb sync` refused {run.name} of {source.address}; log in with `wandb"
                        " login`, then run the same command again: what was sent is marked"
                    )
                _mark(aws, run.name, source)
                terminal.say(f"{run.name}: sent")
                sent += 1
        _mark(aws, source.version, source)
    return sent


def _wandb() -> str:
    beside = Path(sys.executable).with_name("wandb")
    found = shutil.which("wandb") or (str(beside) if os.access(beside, os.X_OK) else None)
    if found is None:
        raise UserError("there is no `wandb` here; install it with pip install wandb")
    return found


def _runs(aws: Aws, source: Source, folder: Path) -> Iterator[Path]:
    """Yield the folders of the runs in `source`, fetched into `folder`."""
    if source.loose:
        run = folder / source.address.rpartition("/")[2]
        for name in source.loose:
            if ".." not in Path(name).parts:
                fetch(aws, f"{source.address}/{name}", run / name)
        yield run
        return
    archive = folder / ARCHIVE
    fetch(aws, source.address, archive)
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    unpack(archive, unpacked)
    yield from sorted(path for path in unpacked.rglob("offline-run-*") if path.is_dir())


def _key(aws: Aws, what: str) -> str:
    return f"{aws.config.prefix}/wandb-synced/{re.sub(r'[^A-Za-z0-9._-]', '', what)}.json"


def _is_marked(aws: Aws, what: str) -> bool:
    request = {"Bucket": aws.config.require("bucket"), "Key": _key(aws, what)}
    return aws.call_or_none("s3", "head_object", request) is not None


def _mark(aws: Aws, what: str, source: Source) -> None:
    body = json.dumps({"schema": "alexmri.wandb-synced/1", "source": source.address})
    aws.call(
        "s3",
        "put_object",
        {
            "Bucket": aws.config.require("bucket"),
            "Key": _key(aws, what),
            "Body": body.encode(),
            "ContentType": "application/json",
        },
    )
