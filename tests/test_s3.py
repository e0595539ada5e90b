"""S3 as a place for files: whole transfers, one writer at a time, refusals in one sentence."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alexmri import s3_lease
from alexmri.errors import UserError
from alexmri.s3 import ConflictError, Prefix, S3Error
from alexmri.s3_lease import LEASE, Lease, LeaseLostError
from alexmri.terminal import PlainTerminal

from .conftest import Bucket


def test_a_large_file_comes_back_as_it_went(bucket: Bucket, tmp_path: Path) -> None:
    data = bytes(range(256)) * 100_000  # three parts
    s3 = Prefix(bucket.url)
    s3.upload(io.BytesIO(data), "large.bin")
    assert bucket.read("large.bin") == data
    s3.download("large.bin", tmp_path / "here" / "large.bin")
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
    with pytest.raises(S3Error, match=r"s3://bucket-\w+/runs/one: S3 failed \(.*404"):
        Prefix(bucket.url).download("gone", tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


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
        (403, "AccessDenied", "access is denied; the credentials need s3:ListBucket"),
        (400, "ExpiredToken", "the AWS credentials have expired; get new ones"),
        (403, "InvalidAccessKeyId", "the AWS credentials are not valid; check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the AWS credentials are not valid"),
        (301, "PermanentRedirect", "the bucket is in another region; set AWS_REGION"),
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (404, "NoSuchBucket", "there is no such bucket"),
    ],
)
def test_every_refusal_is_one_sentence(
    bucket: Bucket, refusal: type[Refusal], status: int, code: str, words: str
) -> None:
    refusal.status, refusal.code = status, code
    with pytest.raises(S3Error) as first:
        Lease(Prefix(bucket.url), PlainTerminal())
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
        Lease(Prefix("s3://no-such-bucket/run"), PlainTerminal())


def test_missing_credentials_are_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(S3Error, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
        Prefix(bucket.url).names()
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(S3Error, match=r"S3 failed \(The config profile \(absent\)"):
        Prefix(bucket.url)


def test_a_network_that_is_gone_is_named(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(S3Error, match=r"S3 cannot be reached \(EndpointConnectionError\)"):
        Prefix(bucket.url).names()


# --- one writer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(s3_lease, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 3.0)


def kill(lease: Lease) -> None:
    """Have the writer show no more life, as one whose machine is gone."""
    lease._over.set()


@pytest.mark.usefixtures("quick")
def test_a_second_writer_is_refused_while_the_first_lives(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Lease(Prefix(bucket.url), PlainTerminal())
    with pytest.raises(UserError) as raised:
        Lease(Prefix(bucket.url), PlainTerminal())
    assert f"{bucket.url} is written by another training, on " in str(raised.value)
    assert " since 20" in str(raised.value)
    assert f"take it over by removing {bucket.url}/{LEASE}" in str(raised.value)
    assert "waiting up to" in capsys.readouterr().out
    first.release()
    assert bucket.names() == []
    Lease(Prefix(bucket.url), PlainTerminal()).release()


@pytest.mark.usefixtures("quick")
def test_a_dead_writer_is_replaced_and_stays_out(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Lease(Prefix(bucket.url), PlainTerminal())
    kill(first)
    second = Lease(Prefix(bucket.url), PlainTerminal())
    assert f"{bucket.url} is taken over from the training on " in capsys.readouterr().out
    second.renew()
    for _ in range(2):
        with pytest.raises(LeaseLostError, match=r"was taken over by a training on .* since 20"):
            first.renew()
    first.release()  # takes nothing from the second
    second.renew()
    second.release()


@pytest.mark.usefixtures("quick")
def test_who_removes_the_lease_ends_the_writer(bucket: Bucket) -> None:
    lease = Lease(Prefix(bucket.url), PlainTerminal())
    kill(lease)
    bucket.remove(LEASE)
    with pytest.raises(LeaseLostError, match="by somebody who removed writer.json"):
        lease.renew()


@pytest.mark.usefixtures("quick")
def test_a_lease_that_is_no_json_is_still_a_lease(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.put(LEASE, b"<html>")
    Lease(Prefix(bucket.url), PlainTerminal()).release()
    assert "an unknown host" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_renewal_whose_answer_was_lost_is_recognised(bucket: Bucket) -> None:
    s3 = Prefix(bucket.url)
    lease = Lease(s3, PlainTerminal())
    kill(lease)
    lost: list[int] = []

    def lose_one_answer(response: object, **_: object) -> int | None:
        lost.append(1)
        return 0 if len(lost) == 1 else None  # botocore sends the request again

    s3._client.meta.events.register_first("needs-retry.s3.PutObject", lose_one_answer)
    lease.renew()
    assert len(lost) == 2
    lease.renew()
    lease.release()
    assert bucket.names() == []
