"""Names made from what they stand for, so that the same request twice finds the first."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(request: Mapping[str, Any], digits: int) -> str:
    """Return the first hexadecimal `digits` of the SHA-256 of a request."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def bucket_and_key(address: str) -> tuple[str, str]:
    """Return the two parts of s3://BUCKET/KEY."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key
