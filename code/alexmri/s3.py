"""Move files to and from one prefix in S3: whole, checked, and with errors in one sentence.

boto3 finds credentials, region and endpoint as everywhere: AWS_* variables, ~/.aws, a role.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from alexmri.errors import UserError
from alexmri.files import appearing

DENIED = (
    "access is denied; the credentials need s3:ListBucket on the bucket and s3:GetObject,"
    " s3:PutObject and s3:DeleteObject below the prefix"
)
EXPIRED = "the AWS credentials have expired; get new ones"
INVALID = "the AWS credentials are not valid; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
MISSING = (
    "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this"
    " machine a role"
)
REGION = "the bucket is in another region; set AWS_REGION to its region"
SENTENCES = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the name",
    "SlowDown": "S3 asks to slow down",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "403"), DENIED),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired"), EXPIRED),
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"), INVALID),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301"), REGION),
}
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
            from botocore.config import Config

            # Without threads: what moves a checkpoint must not compete with the training, and can
            # be left behind when the process ends.
            self._transfer = TransferConfig(use_threads=False)
            self._client: Any = boto3.session.Session().client(
                "s3",
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": 4},
                    connect_timeout=5,
                    read_timeout=20,
                ),
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

    def download(self, name: str, path: Path) -> None:
        """Make `path` from the object `name`, whole or not at all."""
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
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except (BotoCoreError, ClientError, RetriesExceededError) as raised:
            error = raised.last_exception if isinstance(raised, RetriesExceededError) else raised
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
            kind = ConflictError if conditional and code in CONFLICTS else S3Error
            raise kind(f"{self.url}: {_sentence(error, code)}") from None


def _sentence(error: Exception, code: str) -> str:
    from botocore import exceptions

    no_credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
    )
    if isinstance(error, no_credentials):
        return MISSING
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return f"S3 cannot be reached ({type(error).__name__})"
    first = (str(error).splitlines() or [""])[0][:200]
    return SENTENCES.get(code) or f"S3 failed ({first or type(error).__name__})"
