"""Decode a data set once, in parallel, into a memory-mapped array that later runs reuse."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexmri.data.decode import BadImages, decode_all, read_image, refuse_unreadable
from alexmri.data.folders import Folder, ImageFile
from alexmri.data.pixels import PREPROCESSING, Pixels
from alexmri.files import write_json
from alexmri.terminal import Terminal

SCHEMA = "alexmri.cache/3"


@dataclass(frozen=True, slots=True)
class DecodedCache:
    """The decoded images of a data set, in the order of its files.

    Attributes:
        pixels_NCHW: memory-mapped `uint8` array, without the images left out.
        sha256: hex digest of the bytes of every file, without those left out.
        skipped: images left out because they cannot be read: name -> reason.
        enlarged: names of the images that have fewer pixels than the network takes.
        seconds: how long decoding took; None where an earlier run had done it already.
    """

    pixels_NCHW: Pixels
    sha256: tuple[str, ...]
    skipped: Mapping[str, str]
    enlarged: tuple[str, ...]
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
            folder.mkdir(parents=True, exist_ok=True)
            usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    return folder if usable else Path(tempfile.gettempdir()) / f"alexmri-cache-{os.getuid()}"


def open_cache(
    folder: Folder,
    *,
    image_size: int,
    channels: int,
    workers: int,
    terminal: Terminal,
    bad_images: BadImages = "fail",
) -> DecodedCache:
    """Return the decoded images of `folder`, from the cache where no file has changed since.

    A file counts as unchanged while its name, size and modification time are. With `bad_images`
    "skip", images that cannot be read are left out; with "list" any number of them.

    Raises:
        UserError: images that cannot be read, by name; with "skip", too many of them; a disk
            that cannot hold them decoded.
    """
    state = [_state(image) for image in folder.images]
    description = json.dumps(
        [SCHEMA, PREPROCESSING, image_size, channels, str(folder.root.resolve()), state]
    )
    key = hashlib.sha256(description.encode()).hexdigest()[:32]
    array_path = cache_folder() / f"{key}.npy"
    index_path = cache_folder() / f"{key}.json"
    index, seconds = _usable_index(index_path, array_path, folder), None
    if index is None:
        started = time.monotonic()
        index = decode_all(
            folder,
            array_path,
            image_size=image_size,
            channels=channels,
            workers=workers,
            terminal=terminal,
            bad_images=bad_images,
        )
        write_json(index_path, {"schema": SCHEMA, "root": str(folder.root), **index})
        seconds = time.monotonic() - started
    refuse_unreadable(index["skipped"], folder, bad_images)
    return DecodedCache(
        np.load(array_path, mmap_mode="r")[: len(index["sha256"])],
        tuple(index["sha256"]),
        index["skipped"],
        tuple(index["enlarged"]),
        seconds,
    )


def _state(image: ImageFile) -> tuple[str, int, int]:
    try:
        status = image.path.stat()
    except OSError:
        return image.name, -1, -1
    return image.name, status.st_size, status.st_mtime_ns


def _usable_index(index_path: Path, array_path: Path, folder: Folder) -> dict[str, Any] | None:
    """Return what was found when the images were decoded, where that still holds."""
    if not (array_path.is_file() and index_path.is_file()):
        return None
    index: dict[str, Any] = json.loads(index_path.read_text(encoding="utf-8"))
    # A file that could not be opened may be readable today though nothing in it has changed.
    left_out = [image.path for image in folder.images if image.name in index["skipped"]]
    return index if all(isinstance(read_image(path), str) for path in left_out) else None
