"""Write files so that they appear whole or not at all, prove what is in them, read JSON safely."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from alexmri.errors import UserError

# The longest file of ours, the checkpoint of a run of 100,000 epochs, has 40 MB.
MAX_JSON_BYTES = 64 << 20
# What a killed process leaves: the temporary names of `appearing`, and those of safetensors.
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.tmp[0-9A-Za-z]{6}")
# How safetensors and others tell the number of an error of the operating system.
ERROR_NUMBER = re.compile(r"(?:os error |code: )(\d+)|StorageFull")
RUN_AGAIN = "and run the same command again"
REMEDIES = {
    errno.ENOSPC: f"make room {RUN_AGAIN}",
    errno.EDQUOT: f"make room within the quota {RUN_AGAIN}",
    errno.EFBIG: f"raise the limit for the size of a file (ulimit -f) {RUN_AGAIN}",
    errno.EROFS: "choose a folder on a disk that can be written",
}


class WriteError(UserError):
    """A file cannot be written; the message names it, the reason and the remedy."""


def make_writable(folder: Path) -> None:
    """Make `folder` where it is missing; UserError where this user cannot write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"the folder {folder} cannot be written by user {os.getuid()}; give it to that user, or"
            " run as the user it belongs to"
        )


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of `name`, which comes from somebody else, below `folder`.

    Raises:
        UserError: `name` is absolute, climbs with "..", or leaves `folder` through a link there.
    """
    parts = PurePosixPath(name).parts
    path = folder / name
    climbs = not parts or parts[0] == "/" or ".." in parts or "\0" in name
    if climbs or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{name!r} would be written outside of {folder}; choose another folder, or remove what"
            " leads out of it"
        )
    return path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there becomes `path` at the end.

    The bytes are on disk (fsync of the file) before the name is (rename, then fsync of the
    folder), so a crash or a kill leaves the old file or the new one, never half of one.

    Raises:
        WriteError: it cannot be written; what stood there before still does.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The umask of the user says who may read it. safetensors replaces the file by one
            # that only its owner can read, so the mode is set again at the end.
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one sentence.

    Errors that name a file elsewhere, such as one that is read meanwhile, pass unchanged.

    Raises:
        WriteError: the disk is full, read-only or broken, or it is somebody else's.
    """
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number is None or not _is_about(error, path):
            raise
        raise WriteError(f"{path} cannot be written: {_reason(error, number, path)}") from error


def _error_number(error: Exception) -> int | None:
    """Return the errno of a failed write, 0 for one without a number, None for other errors."""
    if type(error).__name__ == "SafetensorError":  # without importing safetensors for it
        found = ERROR_NUMBER.search(str(error))
        return int(found[1] or errno.ENOSPC) if found else None
    if isinstance(error, shutil.Error):
        return 0
    # Libraries for networks derive their errors from OSError too.
    if type(error).__module__ != "builtins" or isinstance(error, ConnectionError | TimeoutError):
        return None
    return (error.errno or 0) if isinstance(error, OSError) else None


def _is_about(error: Exception, path: Path) -> bool:
    named = [getattr(error, "filename", None), getattr(error, "filename2", None)]
    names = [Path(os.fsdecode(name)) for name in named if isinstance(name, str | bytes)]
    return (
        not names
        or any(name == path or path.parent in name.parents for name in names)
        or any(name in path.parents for name in names)
    )


def _reason(error: Exception, number: int, path: Path) -> str:
    folder = next(each for each in (path.parent, *path.parent.absolute().parents) if each.is_dir())
    free = shutil.disk_usage(folder).free
    # numpy tells how many items it wrote, and not why it wrote no more.
    if number == 0:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return f"{first} ({free / 1e6:.1f} MB free); {REMEDIES[errno.ENOSPC]}"
    why = os.strerror(number)
    if number in (errno.ENOSPC, errno.EDQUOT):
        inodes = os.statvfs(folder)
        full = inodes.f_files > 0 and inodes.f_favail == 0
        why += " (no file more fits)" if full else f" ({free / 1e6:.1f} MB free)"
    if number in (errno.EACCES, errno.EPERM):
        return f"{why}; let user {os.getuid()} write to {folder}, or choose another folder"
    return f"{why}; {REMEDIES.get(number, 'check the disk, or choose another folder')}"


def append_text(path: Path, text: str) -> None:
    """Add `text` to a file; it is on disk when this returns.

    Raises:
        WriteError: it cannot be written; then nothing of it stands there.
    """
    rest = memoryview(text.encode())
    with writing(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had not finished writing; nobody else may be writing there."""
    for path in folder.glob(".*"):
        if LEFTOVER.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(prefix: str, parent: Path | str | None = None) -> Iterator[Path]:
    """Yield a new folder that only this user can enter, and remove it after the block.

    By default it lies where temporary files do. tempfile.TemporaryDirectory forgets its folder
    when the handler of a signal raises just while the folder is made or removed; this does not.
    """
    folder = Path(parent or tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the first may have been interrupted


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; what was put there appears in `folder`, new or not, at the end.

    A folder that exists is kept and filled from within: it may be a mount, which cannot be renamed.

    Raises:
        WriteError: it cannot be written.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        exists = folder.is_dir()
        with temporary_folder(f".{folder.name}-", folder if exists else folder.parent) as temporary:
            # One level deeper, because the temporary folder's mode shuts out every other user.
            new = temporary / "new"
            new.mkdir()
            yield new
            if exists:
                for path in new.iterdir():
                    path.replace(folder / path.name)
            else:
                new.rename(folder)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` in one piece; WriteError where that cannot be."""
    with appearing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def to_json(value: Any) -> str:
    """Return `value` as readable JSON that any parser takes: NaN and infinity raise ValueError."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` in one piece; WriteError where that cannot be."""
    write_atomically(path, to_json(value))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, however its file is laid out."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
            data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_JSON_BYTES:
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
        repeated = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"it has the key {repeated!r} twice; keep one")
    return content
