"""Write files so that they appear whole or not at all, and prove what is in them."""

import hashlib
import json
import os
import re
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The temporary names of `appearing`.
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
KILL_VARIABLE = "ALEXMRI_TEST_KILL_IN_WRITE"
_written: list[Path] = []


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there becomes `path` at the end.

    The bytes are on disk (fsync of the file) before the name is (rename, then fsync of the
    folder), so a crash or a kill leaves the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # safetensors makes files only their owner can read; a model is for whoever owns the folder.
        temporary.chmod(0o644)
        _die_if_told(path, "before")
        temporary.replace(path)
        _die_if_told(path, "after")
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had not finished writing; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _die_if_told(path: Path, moment: str) -> None:
    """Kill this process where tests and bench/chaos.py want it killed: `PATTERN:COUNT:MOMENT`."""
    told = os.environ.get(KILL_VARIABLE)
    if not told:
        return
    pattern, count, when = told.split(":")
    if when == moment and path.match(pattern):
        _written.append(path)
        if len(_written) == int(count):
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; what was put there appears in `folder`, new or not, at the end.

    A folder that exists is kept and filled from within: it may be a mount, which cannot be renamed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    exists = folder.is_dir()
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder if exists else folder.parent
    ) as temporary:
        # One level deeper, because TemporaryDirectory's own mode shuts out every other user.
        new = Path(temporary) / "new"
        new.mkdir()
        yield new
        if exists:
            for path in new.iterdir():
                path.replace(folder / path.name)
        else:
            new.rename(folder)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one piece."""
    with appearing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def to_json(value: Any) -> str:
    """Return `value` as readable JSON that any parser takes: NaN and infinity raise ValueError."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` in one piece."""
    write_atomically(path, to_json(value))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
