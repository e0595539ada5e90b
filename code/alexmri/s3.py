"""Move files to and from one prefix in S3: whole, checked, and with errors in one sentence.

boto3 finds credentials, region and endpoint as everywhere: AWS_* variables, ~/.aws, a role.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from alexmri.aws.client import (
    JOB_HINTS,
    boto_errors,
    cause_of,
    code_of,
    make_client,
    permission,
    sentence,
)
from alexmri.errors import UserError
from alexmri.files import appearing, path_inside

CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409", "404")


class S3Error(UserError):
    """S3 did not do what was asked; the message says why, in one sentence."""


class ConflictError(S3Error):
    """An object is not what a conditional write or deletion took it for."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object read: its bytes and its version (ETag)."""

    data: bytes
    etag: str


class Prefix:
    """The objects directly below `s3://BUCKET/PREFIX/`, by name. Threads may share one.

    Every method raises S3Error where S3 refuses or cannot be reached, after a few attempts.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/"
        with self._translate_errors():
            import boto3  # half a second that only who uses S3 should pay
            from boto3.s3.transfer import TransferConfig

            # Without threads: what moves a checkpoint must not compete with the training, and can
            # be left behind when the process ends.
            self._transfer = TransferConfig(use_threads=False)
            self._client: Any = make_client(
                boto3.session.Session(), "s3", attempts=4, connect_seconds=5, read_seconds=20
            )

    def names(self) -> set[str]:
        """Return the names of the objects directly below the prefix."""
        with self._translate_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            return {
                found["Key"].removeprefix(self._prefix)
                for page in pages
                for found in page.get("Contents", ())
            }

    def download(self, name: str, folder: Path) -> None:
        """Make the file `name` in `folder` from the object, whole or not at all.

        Raises:
            UserError: the file would not be in `folder`.
        """
        path = path_inside(folder, name)
        with self._translate_errors(), appearing(path) as temporary, temporary.open("wb") as file:
            self._client.download_fileobj(**self._at(name), Fileobj=file)

    def upload(self, file: BufferedReader | BytesIO, name: str) -> None:
        """Make the object `name` from `file`, in parts where it is large; S3 checks what came."""
        with self._translate_errors():
            self._client.upload_fileobj(
                file,
                **self._at(name),
                ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                Config=self._transfer,
            )

    def delete(self, names: Iterable[str]) -> None:
        """Remove the objects `names`, one after the other."""
        with self._translate_errors():
            for name in names:
                self._client.delete_object(**self._at(name))

    def read(self, name: str) -> Found | None:
        """Return the small object `name`, or None where there is none."""
        from botocore.exceptions import ClientError

        with self._translate_errors():
            try:
                answer = self._client.get_object(**self._at(name))
            except ClientError as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            return Found(answer["Body"].read(), answer["ETag"])

    def write(self, name: str, data: bytes, *, replacing: str | None = None) -> str:
        """Make the object `name` where none is, or in place of the version `replacing`.

        Returns:
            the version (ETag) written.

        Raises:
            ConflictError: another version stands there, or any where none should.
        """
        condition = {"IfMatch": replacing} if replacing else {"IfNoneMatch": "*"}
        with self._translate_errors(conditional=True):
            answer = self._client.put_object(
                **self._at(name),
                Body=data,
                ContentType="application/json",
                ChecksumAlgorithm="SHA256",
                **condition,
            )
            return str(answer["ETag"])

    def delete_version(self, name: str, etag: str) -> None:
        """Remove the object `name` while it is the version `etag`, else raise ConflictError."""
        with self._translate_errors(conditional=True):
            self._client.delete_object(**self._at(name), IfMatch=etag)

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    @contextmanager
    def _translate_errors(self, *, conditional: bool = False) -> Iterator[None]:
        """Turn what boto3 raises into one sentence."""
        try:
            yield
        except boto_errors() as raised:
            error = cause_of(raised)
            kind = ConflictError if conditional and code_of(error) in CONFLICTS else S3Error
            action = permission("s3", getattr(error, "operation_name", "S3"))
            client = getattr(self, "_client", None)
            region = client.meta.region_name if client else "this region"
            told = sentence(error, action.removeprefix("s3:S3") or "S3", region, JOB_HINTS)
            raise kind(f"{self.url}: {told}") from None
