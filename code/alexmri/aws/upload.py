"""A folder of data in S3, below a prefix named by what is in it: only what is missing is sent."""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alexmri.aws.client import Aws, Call
from alexmri.aws.config import AwsConfig
from alexmri.errors import UserError
from alexmri.files import sha256_of
from alexmri.terminal import Terminal

# Images of a few kB each: the time goes into waiting for answers.
THREADS = 16
IN_ONE_PIECE = 8 << 20
SCHEMA = "alexmri.upload/1"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file below the folder: its name there, its size, its SHA-256."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Upload:
    """Where data is, and what it took to get it there."""

    address: str
    fingerprint: str
    files: int
    sent: int
    copied: int


def read_folder(folder: Path, terminal: Terminal) -> list[LocalFile]:
    """Return the files below `folder` in order of their names; hidden ones are left out.

    Raises:
        UserError: there is none, or a link, which S3 cannot hold.
    """
    names = sorted(_names(folder))
    if not names:
        raise UserError(f"{folder} holds no files; name a folder of class folders")

    def look(name: str) -> LocalFile:
        path = folder / name
        return LocalFile(name, path, path.stat().st_size, sha256_of(path))

    threads = min(THREADS, 2 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(look, names)
        return list(terminal.track(found, len(names), "reading"))


def _names(folder: Path) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink():
                raise UserError(f"{path} is a link; replace it by a copy of its target")
        for name in files:
            if not name.startswith("."):
                yield Path(root, name).relative_to(folder).as_posix()


def fingerprint(files: Iterable[LocalFile]) -> str:
    """Return 16 hexadecimal digits over name and content of every file."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.sha256} {file.name}\n".encode())
    return digest.hexdigest()[:16]


def manifest_key(config: AwsConfig, found: str) -> str:
    """Return the key of the list that says: this upload is complete."""
    return f"{config.prefix}/data/{found}.json"


def encryption(config: AwsConfig) -> dict[str, str]:
    """Return what a PutObject says about encryption."""
    if not config.kms_key:
        return {}
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": config.kms_key}


def put_request(config: AwsConfig, prefix: str, file: LocalFile) -> dict[str, Any]:
    """Return PutObject for one file, without its bytes; S3 compares the checksum."""
    return {
        "Bucket": config.require("bucket"),
        "Key": f"{prefix}{file.name}",
        "ChecksumAlgorithm": "SHA256",
        **encryption(config),
    }


def upload_calls(config: AwsConfig, files: list[LocalFile]) -> list[Call]:
    """Return what `upload` does where nothing is in the bucket yet."""
    found = fingerprint(files)
    prefix = f"{config.prefix}/data/{found}/"
    return [
        *(Call("s3", "put_object", put_request(config, prefix, file)) for file in files),
        Call(
            "s3", "put_object", {"Bucket": config.require("bucket"), "Key": prefix[:-1] + ".json"}
        ),
    ]


def upload(aws: Aws, files: list[LocalFile], terminal: Terminal) -> Upload:
    """Bring `files` to S3 and return where they are.

    An object is whole or not there, and the prefix is named by what belongs below it; so an
    interrupted upload goes on with what is missing. What an earlier upload has already is copied
    within S3. The list beside the prefix comes last: where it stands, all is there.
    """
    config = aws.config
    bucket, found = config.require("bucket"), fingerprint(files)
    prefix = f"{config.prefix}/data/{found}/"
    address = f"s3://{bucket}/{prefix[:-1]}"
    if aws.call_or_none(
        "s3", "head_object", {"Bucket": bucket, "Key": manifest_key(config, found)}
    ):
        terminal.say("all files are there already")
        return Upload(address, found, len(files), 0, 0)
    there = _sizes(aws, prefix)
    missing = [file for file in files if there.get(prefix + file.name) != file.size]
    elsewhere = _earlier(aws) if missing else {}
    copies = [file for file in missing if file.sha256 in elsewhere]
    fresh = [file for file in missing if file.sha256 not in elsewhere]

    def copy(file: LocalFile) -> None:
        source = {"Bucket": bucket, "Key": elsewhere[file.sha256]}
        request = {**put_request(config, prefix, file), "CopySource": source}
        if aws.call_or_none("s3", "copy_object", request) is None:  # somebody removed it
            send(file)

    def send(file: LocalFile) -> None:
        _send(aws, put_request(config, prefix, file), file)

    _in_parallel(copy, copies, terminal, "copying")
    _in_parallel(send, fresh, terminal, "sending")
    manifest = {
        "schema": SCHEMA,
        "fingerprint": found,
        "files": {file.name: {"size": file.size, "sha256": file.sha256} for file in files},
    }
    aws.call(
        "s3",
        "put_object",
        {
            "Bucket": bucket,
            "Key": manifest_key(config, found),
            "Body": json.dumps(manifest).encode(),
            "ContentType": "application/json",
            "ChecksumAlgorithm": "SHA256",
            **encryption(config),
        },
    )
    return Upload(address, found, len(files), len(fresh), len(copies))


def _send(aws: Aws, request: Mapping[str, Any], file: LocalFile) -> None:
    if file.size <= IN_ONE_PIECE:
        # The checksum of what was read before: S3 refuses a file that was changed since.
        checksum = base64.b64encode(bytes.fromhex(file.sha256)).decode()
        body = {"Body": file.path.read_bytes(), "ChecksumSHA256": checksum}
        aws.call("s3", "put_object", {**request, **body})
        return
    from boto3.s3.transfer import TransferConfig

    extra = {key: value for key, value in request.items() if key not in ("Bucket", "Key")}
    # In parts; one thread for each file is enough.
    transfer = TransferConfig(use_threads=False)
    with file.path.open("rb") as content, aws.translate_errors("s3", "put_object"):
        aws.client("s3").upload_fileobj(
            content, request["Bucket"], request["Key"], ExtraArgs=extra, Config=transfer
        )
    if file.path.stat().st_size != file.size:
        raise UserError(f"{file.path} was changed while it was sent; run the command again")


def _sizes(aws: Aws, prefix: str) -> dict[str, int]:
    request = {"Bucket": aws.config.require("bucket"), "Prefix": prefix}
    return {
        each["Key"]: each["Size"]
        for each in aws.pages("s3", "list_objects_v2", request, "Contents")
    }


def _earlier(aws: Aws) -> dict[str, str]:
    """Return SHA-256 -> key for what complete uploads have brought."""
    bucket, below = aws.config.require("bucket"), f"{aws.config.prefix}/data/"
    request = {"Bucket": bucket, "Prefix": below, "Delimiter": "/"}
    known: dict[str, str] = {}
    for each in aws.pages("s3", "list_objects_v2", request, "Contents"):
        answer = aws.call("s3", "get_object", {"Bucket": bucket, "Key": each["Key"]})
        try:
            document = json.loads(answer["Body"].read())
        except ValueError:
            continue
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            continue
        prefix = f"{below}{document['fingerprint']}/"
        known |= {facts["sha256"]: prefix + name for name, facts in document["files"].items()}
    return known


def _in_parallel(
    work: Callable[[T], R], items: list[T], terminal: Terminal, description: str
) -> None:
    """Do `work` for all `items`; the first failure ends it, without waiting for the others."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        done = pool.map(work, items)
        for _ in terminal.track(done, len(items), description):
            pass
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
