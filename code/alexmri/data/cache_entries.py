"""The files of the decoded cache: who may write an entry, who uses one, which ones make room.

An entry is an array and an index, with a lock file beside them. Whoever checks an entry shares the
lock, whoever decodes holds it alone. Whoever uses the pixels shares a lock on the array itself.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alexmri.errors import UserError
from alexmri.terminal import Terminal

LIMIT_VARIABLE = "ALEXMRI_CACHE_GB"
# The decoded cache may hold so much, but no more than this share of the disk.
MAX_BYTES, MAX_DISK_SHARE = 20 * 10**9, 0.1
# Also what a killed process has not finished writing (files.appearing).
ENTRY_FILE = re.compile(r"\.?(decoded-[0-9a-f]{32})\.(npy|json|lock)(\.[0-9a-f]{8}\.tmp)?")
# Before entries had a prefix: only with an index that says whose it is.
OLD_ENTRY_FILE = re.compile(r"([0-9a-f]{32})\.(npy|json)")
OLD_INDEX = b'"schema": "alexmri.cache/'
# What locking says on a read-only folder, and on a file system without locks.
NO_LOCKS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Entry:
    """The files of one entry; `used` is when it was used last."""

    key: str
    files: tuple[Path, ...]
    bytes: int
    used: float


@contextlib.contextmanager
def locked(path: Path, terminal: Terminal, *, alone: bool) -> Iterator[bool]:
    """Share the lock file `path`, or hold it alone; wait for whoever is in the way.

    Yields whether there is a lock.

    A signal handler of Python runs while this waits, and may raise. Where a file system knows no
    locks, or its folder is read-only, nobody waits.
    """
    try:
        file = _acquired(path, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, terminal)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        os.close(file)


def _acquired(path: Path, kind: int, terminal: Terminal) -> int:
    """Return an open file that holds the lock `path`."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                terminal.say("another process decodes the same images: waiting for it")
                fcntl.flock(file, kind)
            if _is_still(path, file):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the entry was removed meanwhile, with this file


def prune(root: Path, *, keep: str, room: int, terminal: Terminal) -> None:
    """Remove the entries used least recently, until `room` more bytes are within the limit.

    `keep` names the entry in use here; those that other processes use stay as well.
    """
    limit = _limit(root)
    entries = [entry for entry in _entries(root) if entry.key != keep]
    total = room + sum(entry.bytes for entry in entries)
    removed = 0
    freed = 0
    for entry in sorted(entries, key=lambda entry: entry.used):
        if total - freed <= limit:
            break
        if _remove(root, entry):
            removed += 1
            freed += entry.bytes
    if removed:
        terminal.say(
            f"decoded cache {root}: removed the entries used least recently, {removed} with"
            f" {freed / 1e9:.2f} GB, to keep within its limit of {limit / 1e9:.2f} GB"
            f" ({LIMIT_VARIABLE} sets another limit)"
        )


def remove_leftovers(root: Path, key: str) -> None:
    """Remove what a killed process left of an entry; only for who holds its lock alone."""
    for path in root.glob(f".{key}.*.tmp"):
        if ENTRY_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _limit(root: Path) -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return min(MAX_BYTES, int(MAX_DISK_SHARE * shutil.disk_usage(root).total))
    try:
        limit = float(text) * 10**9
    except ValueError:
        limit = -1
    if not 0 <= limit < float("inf"):
        raise UserError(f"{LIMIT_VARIABLE} is '{text}'; give a number of gigabytes, such as 20")
    return int(limit)


def _entries(root: Path) -> list[Entry]:
    found: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in root.iterdir():
        name = ENTRY_FILE.fullmatch(path.name) or OLD_ENTRY_FILE.fullmatch(path.name)
        with contextlib.suppress(OSError):
            status = path.lstat()
            if name and (path.name.lstrip(".").startswith("decoded-") or _is_old_entry(path)):
                found.setdefault(name[1], []).append((path, status))
    return [
        Entry(
            key,
            tuple(path for path, _ in files),
            sum(status.st_size for _, status in files),
            max(status.st_mtime for _, status in files),
        )
        for key, files in found.items()
    ]


def _is_old_entry(path: Path) -> bool:
    with path.with_suffix(".json").open("rb") as file:
        return OLD_INDEX in file.read(100)


def _remove(root: Path, entry: Entry) -> bool:
    """Remove an entry that nobody checks, decodes or uses; return whether it is gone."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        for path in (root / f"{entry.key}.lock", root / f"{entry.key}.npy"):
            if path.exists():
                file = os.open(path, os.O_RDWR)
                stack.callback(os.close, file)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_still(path, file):
                    return False
        # The lock last: until then nobody else writes here.
        for path in sorted(entry.files, key=lambda path: path.suffix == ".lock"):
            path.unlink(missing_ok=True)
        return True
    return False


def _is_still(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
