"""Read JSON files that others wrote, or that a disk may have damaged."""

import json
import stat
from pathlib import Path
from typing import Any

from alexmri.errors import UserError

# The longest file of ours, the checkpoint of a run of 100,000 epochs, has 40 MB.
MAX_BYTES = 64 << 20


def read_json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None where there is no such file.

    Raises:
        UserError: not readable, too large, or as `parse_json_object`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device may never end
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{path} has {status.st_size / 1e6:.0f} MB; no JSON file of alexmri is so large"
        )
    return parse_json_object(data, str(path))


def require_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; UserError as by `read_json_object`, or without a file."""
    content = read_json_object(path)
    if content is None:
        raise UserError(f"{path} is missing")
    return content


def parse_json_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object in `data`; `name` says in errors what that is.

    A byte order mark, which editors on Windows leave, is passed over.

    Raises:
        UserError: not a JSON object, nested too deeply, or with text that is no Unicode, a number
            that is none, or a key that comes twice.
    """
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicate_keys)
        # Half a surrogate pair is in no encoding, NaN and infinity are in no JSON.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{name} is not valid JSON: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise UserError(f"{name} must hold one JSON object, not {type(content).__name__}")
    return content


def _without_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"it has the key {twin!r} twice; keep one")
    return content
