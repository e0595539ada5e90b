"""S3 as a place for files: whole transfers, conditional writes, refusals in one sentence."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alexmri.errors import UserError
from alexmri.s3 import ConflictError, Prefix, S3Error

from .conftest import Bucket


def test_a_large_file_comes_back_as_it_went(bucket: Bucket, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100_000  # three parts
    s3 = Prefix(bucket.url)
    s3.upload(io.BytesIO(data), "large.bin")
    assert bucket.read("large.bin") == data
    s3.download("large.bin", tmp_path / "here")
    assert (tmp_path / "here" / "large.bin").read_bytes() == data
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["large.bin"]


def test_names_are_those_directly_below_the_prefix(bucket: Bucket) -> None:
    for name in ("a", "b", "deeper/c", "../one-more/d"):
        bucket.put(name, b"")
    bucket.client.put_object(Bucket=bucket.name, Key="runs/one-more/e", Body=b"")
    s3 = Prefix(bucket.url)
    assert s3.names() == {"a", "b"}
    s3.delete(["a", "never there"])
    assert s3.names() == {"b"}


def test_a_missing_object_leaves_no_file(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(
        S3Error, match=r"s3://bucket-\w+/runs/one: s3:GetObject was refused: Not Found"
    ):
        Prefix(bucket.url).download("gone", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "sub/../../out", "link/out", ""])  # noqa: S108
def test_nothing_is_written_outside_of_the_folder(
    bucket: Bucket, tmp_path: Path, name: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "outside")
    bucket.client.put_object(Bucket=bucket.name, Key=f"runs/one/{name}", Body=b"x")
    with pytest.raises(UserError, match="would be written outside of"):
        Prefix(bucket.url).download(name, tmp_path / "folder")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "out").exists()


def test_conditional_writes_see_what_others_did(bucket: Bucket) -> None:
    s3 = Prefix(bucket.url)
    first = s3.write("x", b"1")
    with pytest.raises(ConflictError):
        s3.write("x", b"2")
    second = s3.write("x", b"2", replacing=first)
    with pytest.raises(ConflictError):
        s3.write("x", b"3", replacing=first)
    with pytest.raises(ConflictError):
        s3.delete_version("x", first)
    s3.delete_version("x", second)
    assert s3.read("x") is None
    with pytest.raises(ConflictError):
        s3.write("x", b"3", replacing=second)


# --- refusals


class Refusal(BaseHTTPRequestHandler):
    """Answers every request as S3 does when it refuses."""

    status = 403
    code = "AccessDenied"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{self.code}</Code><Message>KEY AKIA123</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def refusal(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusal]]:
    class Own(Refusal):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    yield Own
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (
            403,
            "AccessDenied",
            "these credentials do not allow s3:PutObject; they need s3:ListBucket",
        ),
        (400, "ExpiredToken", "the AWS credentials have expired; get new ones"),
        (403, "InvalidAccessKeyId", "the AWS credentials are not valid; check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the AWS credentials are not valid"),
        (301, "PermanentRedirect", "this is in another region than us-east-1; set AWS_REGION"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (404, "NoSuchBucket", "there is no such bucket"),
    ],
)
def test_every_refusal_is_one_sentence(
    bucket: Bucket, refusal: type[Refusal], status: int, code: str, words: str
) -> None:
    refusal.status, refusal.code = status, code
    with pytest.raises(S3Error) as first:
        Prefix(bucket.url).write("file", b"x")
    with pytest.raises(S3Error) as second:
        Prefix(bucket.url).upload(io.BytesIO(b"x"), "file")
    with pytest.raises(S3Error) as third:
        Prefix(bucket.url).upload(io.BytesIO(bytes(9_000_000)), "file")
    for raised in (first, second, third):
        assert words in str(raised.value)
        assert str(raised.value).startswith(f"{bucket.url}: ")
        assert "AKIA" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_missing_bucket_is_named(bucket: Bucket) -> None:
    with pytest.raises(S3Error, match="s3://no-such-bucket/run: there is no such bucket"):
        Prefix("s3://no-such-bucket/run").names()


def test_missing_credentials_are_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(S3Error, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
        Prefix(bucket.url).names()
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(S3Error, match="AWS credentials cannot be obtained"):
        Prefix(bucket.url)


def test_a_network_that_is_gone_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(S3Error, match=r"S3: AWS cannot be reached in us-east-1"):
        Prefix(bucket.url).names()
