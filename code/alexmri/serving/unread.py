"""Which requests the main loop can answer by a look at what has arrived, without a thread.

Pings, so that they wait for no thread; and, when the server is full, invocations, which are then
refused: at three times what a server can answer that is two of three. By a thread and a parser a
refusal took 0.47 to 0.85 ms of a core, and by this 0.09 (beside other work, measured in turns).
"""

import re
from enum import Enum

LONGEST_HEAD = 8192
# What needs a parser: another framing, a connection that ends, words that go into answer and log.
SPECIAL = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|trailer|x-amzn-sagemaker-[^:\r]*"
    rb"|connection:(?![ \t]*keep-alive[ \t]*\r\n))"
)
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n")


class Kind(Enum):
    """A request as its first line tells it."""

    PING = b"GET /ping HTTP/1.1\r\n"
    INVOCATION = b"POST /invocations HTTP/1.1\r\n"


def kind_of(seen: bytearray | memoryview) -> Kind | None:
    """Return what `seen` is, if it is one whole request with nothing special about it."""
    head = bytes(seen[:LONGEST_HEAD]).partition(b"\r\n\r\n")
    kind = next((each for each in Kind if head[0].startswith(each.value)), None)
    fields = head[0].lower() + b"\r\n"
    if not kind or not head[1] or SPECIAL.search(fields):
        return None
    if fields.count(b"\n") != fields.count(b"\r\n"):
        return None
    length = LENGTH.search(fields)
    if fields.count(b"\r\ncontent-length") != (length is not None):
        return None
    body = int(length[1]) if length else 0
    return kind if len(head[0]) + len(b"\r\n\r\n") + body == len(seen) else None
