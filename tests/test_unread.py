"""Which requests may be answered by a look at their bytes."""

import pytest

from alexmri.serving.unread import Kind, kind_of

BODY = b"x" * 70
PING = "GET /ping HTTP/1.1"


def request(*fields: str, start: str = "POST /invocations HTTP/1.1", body: bytes = BODY) -> bytes:
    return "\r\n".join([start, "Host: here", *fields, "", ""]).encode() + body


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Type: image/png", "Content-Length: 70"),
        ("content-length:70", "Connection: keep-alive"),
        ("CONTENT-LENGTH:  70 ", "Accept: */*", "connection: Keep-Alive"),
    ],
)
def test_a_whole_request_of_the_usual_kind_may_be_refused(fields: tuple[str, ...]) -> None:
    assert kind_of(bytearray(request(*fields))) is Kind.INVOCATION


@pytest.mark.parametrize("fields", [(), ("Accept: */*", "Connection: keep-alive")])
def test_a_ping_is_known(fields: tuple[str, ...]) -> None:
    assert kind_of(bytearray(request(*fields, start=PING, body=b""))) is Kind.PING


@pytest.mark.parametrize(
    "seen",
    [
        b"",
        request("Content-Length: 70")[:-1],
        request("Content-Length: 70")[:40],
        request("Content-Length: 70") + b"P",
        request("Content-Length: 70", start="POST /INVOCATIONS HTTP/1.1"),
        request(start=PING, body=b"")[:-2],
        request(start=PING),
        request("Connection: close", start=PING, body=b""),
        request("Transfer-Encoding: chunked", start=PING, body=b""),
        request("Content-Length: 70", start=PING, body=BODY[1:]),
        request("Content-Length : 70", start=PING, body=b""),
        request(start="GET /ping HTTP/1.0", body=b""),
        request(start="HEAD /ping HTTP/1.1", body=b""),
        request(start="GET /ping?x HTTP/1.1", body=b""),
        request("Content-Length: 70", start="POST /invocations HTTP/1.0"),
        request("Content-Length: 70", start="POST /invocations?explain=gradcam HTTP/1.1"),
        request("Content-Length: 70", "Connection: close"),
        request("Content-Length: 70", "Connection: keep-alive, Upgrade"),
        request("Content-Length: 70", "Transfer-Encoding: chunked"),
        request("Content-Length: 70", "Expect: 100-continue"),
        request("Content-Length: 70", "Content-Length: 70"),
        request("Content-Length: 70", "Content-Length : 3"),
        request("Content-Length: +70"),
        request("Content-Length: 70", "X-Amzn-SageMaker-Custom-Attributes: a=b"),
        request("Content-Length: 70", "X-Amzn-SageMaker-Inference-Id: 7"),
        request("X: " + "x" * 10_000, "Content-Length: 70"),
        request("X: 1"),
        request("X: 1\nTransfer-Encoding: chunked", "Content-Length: 70"),
    ],
)
def test_anything_else_is_read_first(seen: bytes) -> None:
    assert kind_of(bytearray(seen)) is None
