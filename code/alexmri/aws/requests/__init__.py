"""The requests to AWS: plain dicts, made from a configuration without asking AWS for anything."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(request: Mapping[str, Any], digits: int) -> str:
    """Return the first hexadecimal `digits` of the SHA-256 of a request."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:digits]
