"""Decode a data set once, in parallel, into a memory-mapped array that later runs reuse."""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexmri.data.cache_entries import locked, prune, remove_leftovers
from alexmri.data.decode import BadImages, decode_all, read_image, refuse_unreadable
from alexmri.data.folders import Folder, ImageFile
from alexmri.data.pixels import PREPROCESSING, Pixels, Preprocessing
from alexmri.errors import UserError
from alexmri.files import write_atomically
from alexmri.terminal import Terminal

SCHEMA = "alexmri.cache/4"
# zlib's CRC-32 reads 4.1 GB/s on one core (SHA-256 1.8): 5,120 slices of 1 KB take 1.3 ms.
CHECKED_AT_ONCE = 2**24
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class DecodedCache:
    """The decoded images of a data set, in the order of its files.

    Attributes:
        pixels_NCHW: memory-mapped `uint8` array, without the images left out.
        sha256: hex digest of the bytes of every file, without those left out.
        sizes: width and height of every image, upright, without those left out.
        skipped: images left out because they cannot be read: name -> reason.
        enlarged: names of the images that have fewer pixels than the network takes.
        frames: names of the files that hold several frames or pages, of which the first is used:
            name -> how many.
        seconds: how long decoding took; None where an earlier run had done it already.
    """

    pixels_NCHW: Pixels
    sha256: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    skipped: Mapping[str, str]
    enlarged: tuple[str, ...]
    frames: Mapping[str, int]
    seconds: float | None

    @property
    def reused(self) -> bool:
        """Whether an earlier run had decoded the images."""
        return self.seconds is None


def cache_folder() -> Path:
    """Return where decoded images are kept: $ALEXMRI_CACHE_DIR or the user's cache folder."""
    chosen = os.environ.get("ALEXMRI_CACHE_DIR")
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(home) / "alexmri"
    usable = folder.is_absolute()  # it is not where no home is known
    try:
        if usable:
            # The images are of people: they are for this user.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    return folder if usable else _private_folder()


def _private_folder() -> Path:
    """Return this user's own folder among the temporary files, where others may write too."""
    folder = Path(tempfile.gettempdir()) / f"alexmri-cache-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not own or status.st_mode & WRITABLE_BY_OTHERS:
        raise UserError(
            f"{folder} does not belong to this user alone, so decoded images from it cannot be"
            " trusted; remove it, or name another folder in ALEXMRI_CACHE_DIR"
        )
    folder.chmod(0o700)  # earlier versions let others read
    return folder


def open_cache(
    folder: Folder,
    *,
    image_size: int,
    channels: int,
    workers: int,
    terminal: Terminal,
    bad_images: BadImages = "fail",
    preprocessing: Preprocessing = PREPROCESSING,
) -> DecodedCache:
    """Return the decoded images of `folder`, from the cache where no file has changed since.

    A file counts as unchanged while its name, size, inode and times are. With `bad_images` "skip",
    images that cannot be read are left out; with "list" any number of them. Of several processes
    that ask for the same images one decodes, and the others wait for it.

    Raises:
        UserError: images that cannot be read, by name; with "skip", too many of them; a disk
            that cannot hold them decoded.
    """
    state = [_state(image) for image in folder.images]
    description = json.dumps(
        [SCHEMA, asdict(preprocessing), image_size, channels, str(folder.root.resolve()), state]
    )
    key = f"decoded-{hashlib.sha256(description.encode()).hexdigest()[:32]}"
    try:
        root = cache_folder()
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"decoded images cannot be kept in {error.filename}: {error.strerror}; name another"
            " folder in ALEXMRI_CACHE_DIR"
        ) from None
    lock = root / f"{key}.lock"
    with locked(lock, terminal, alone=False):
        found = _open_entry(root, key, folder, preprocessing)
    if isinstance(found, str):
        with locked(lock, terminal, alone=True) as is_alone:
            # Another process may have decoded the images meanwhile.
            found = _open_entry(root, key, folder, preprocessing)
            if isinstance(found, str):
                if found:
                    terminal.warn(
                        f"the decoded images in {root / key}.npy are damaged ({found}); they are"
                        " decoded again"
                    )
                if is_alone:
                    remove_leftovers(root, key)
                room = len(folder.images) * channels * image_size**2
                prune(root, keep=key, room=room, terminal=terminal)
                started = time.monotonic()
                index = decode_all(
                    folder,
                    root / f"{key}.npy",
                    image_size=image_size,
                    channels=channels,
                    preprocessing=preprocessing,
                    workers=workers,
                    terminal=terminal,
                    bad_images=bad_images,
                )
                _write_index(root, key, folder, index)
                found = _cache_of(root, key, index, time.monotonic() - started)
    refuse_unreadable(found.skipped, folder, bad_images)
    return found


def _cache_of(
    root: Path, key: str, index: Mapping[str, Any], seconds: float | None
) -> DecodedCache:
    return DecodedCache(
        _mapped(root / f"{key}.npy")[: len(index["sha256"])],
        tuple(index["sha256"]),
        tuple((width, height) for width, height in index["sizes"]),
        index["skipped"],
        tuple(index["enlarged"]),
        index["frames"],
        seconds,
    )


def _mapped(array_path: Path) -> Pixels:
    """Return the array as it lies on disk; while it lives, `prune` of any process leaves it."""
    with array_path.open("rb") as file:
        with contextlib.suppress(OSError):  # no locks there: see `locked`
            # The map keeps a copy of the file's descriptor, and with it the lock.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def _state(image: ImageFile) -> tuple[str, int, int, int, int]:
    """Return what changes with a file; the last two also where two files change places."""
    try:
        status = image.path.stat()
    except OSError:
        return image.name, -1, -1, -1, -1
    return image.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _open_entry(
    root: Path, key: str, folder: Folder, preprocessing: Preprocessing
) -> DecodedCache | str:
    """Return what was decoded earlier where that still holds; else what is damaged, or nothing."""
    array_path, index_path = root / f"{key}.npy", root / f"{key}.json"
    if not index_path.exists():  # an array alone is from a process that was stopped before
        return ""
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        checksum = index.pop("checksum")
        if index["schema"] != SCHEMA or checksum != _checksum(index):
            return "its index is not as it was written"
        if _file_checksum(array_path) != index["array_checksum"]:
            return "its pixels are not as they were written"
        # A file that could not be opened may be readable today though nothing in it has changed.
        left_out = [image.path for image in folder.images if image.name in index["skipped"]]
        if not all(isinstance(read_image(path, preprocessing), str) for path in left_out):
            return ""
        cache = _cache_of(root, key, index, None)
    except OSError as error:
        return error.strerror or "it cannot be read"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "its index is not as it was written"
    for path in (array_path, index_path):
        with contextlib.suppress(OSError):  # it may belong to another user
            os.utime(path)
    return cache


def _write_index(root: Path, key: str, folder: Folder, index: Mapping[str, Any]) -> None:
    document = {
        "schema": SCHEMA,
        "root": str(folder.root),
        **index,
        "array_checksum": _file_checksum(root / f"{key}.npy"),
    }
    # Escaped, since file names need not be UTF-8.
    text = json.dumps({**document, "checksum": _checksum(document)})
    write_atomically(root / f"{key}.json", text)


def _checksum(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def _file_checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(CHECKED_AT_ONCE):
            checksum = zlib.crc32(block, checksum)
    return checksum
