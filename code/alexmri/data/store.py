"""Decode a data set once, in parallel, into a memory-mapped array that later runs reuse."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexmri.data.folders import Folder, ImageFile
from alexmri.data.pixels import PREPROCESSING, Pixels, decode, picture_size
from alexmri.errors import UserError
from alexmri.files import appearing, write_json
from alexmri.terminal import Terminal

SCHEMA = "alexmri.store/1"
# How many unreadable images one message names.
NAMED_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Store:
    """The decoded images of a data set, in the order of its files.

    Attributes:
        pixels_NCHW: memory-mapped `uint8` array.
        sha256: hex digest of the bytes of every file.
        enlarged: names of the images that have fewer pixels than the network takes.
        reused: whether an earlier run had decoded them already.
    """

    pixels_NCHW: Pixels
    sha256: tuple[str, ...]
    enlarged: tuple[str, ...]
    reused: bool


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


def open_store(
    folder: Folder, *, image_size: int, channels: int, workers: int, terminal: Terminal
) -> Store:
    """Return the decoded images of `folder`, from the cache where no file has changed since.

    A file counts as unchanged while its name, size and modification time are.

    Raises:
        UserError: images that cannot be read, by name.
    """
    state = [_state(image) for image in folder.images]
    description = json.dumps(
        [SCHEMA, PREPROCESSING, image_size, channels, str(folder.root.resolve()), state]
    )
    key = hashlib.sha256(description.encode()).hexdigest()[:32]
    array_path = cache_folder() / f"{key}.npy"
    index_path = cache_folder() / f"{key}.json"
    reused = array_path.is_file() and index_path.is_file()
    if not reused:
        index = _decode_all(folder, array_path, image_size, channels, workers, terminal)
        write_json(index_path, {"schema": SCHEMA, "root": str(folder.root), **index})
    index = json.loads(index_path.read_text(encoding="utf-8"))
    return Store(
        np.load(array_path, mmap_mode="r"), tuple(index["sha256"]), tuple(index["enlarged"]), reused
    )


def _state(image: ImageFile) -> tuple[str, int, int]:
    try:
        status = image.path.stat()
    except OSError as error:
        raise UserError(f"{image.path} cannot be read: {error.strerror}") from None
    return image.name, status.st_size, status.st_mtime_ns


def _decode_all(
    folder: Folder,
    array_path: Path,
    image_size: int,
    channels: int,
    workers: int,
    terminal: Terminal,
) -> dict[str, list[str]]:
    shape = (len(folder.images), channels, image_size, image_size)
    sha256: list[str] = []
    enlarged: list[str] = []
    faults: list[str] = []

    def read(image: ImageFile) -> tuple[str, bool, Pixels] | str:
        try:
            data = image.path.read_bytes()
            pixels = decode(data, image_size=image_size, channels=channels)
        except UserError as error:
            return str(error).replace("the picture", str(image.path), 1)
        except OSError as error:
            return f"{image.path} cannot be read: {error.strerror}"
        return hashlib.sha256(data).hexdigest(), min(picture_size(data)) < image_size, pixels

    with appearing(array_path) as temporary:
        pixels_NCHW = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        # A full disk must be an error here; met while writing to the map, it would end the process.
        with temporary.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        # Threads suffice: Pillow lets go of the interpreter lock while it decodes and resizes.
        with ThreadPoolExecutor(workers) as pool:
            results = pool.map(read, folder.images)
            tracked = terminal.track(results, len(folder.images), "decoding")
            for i, (image, result) in enumerate(zip(folder.images, tracked, strict=True)):
                if isinstance(result, str):
                    faults.append(result)
                    continue
                digest, small, pixels_NCHW[i] = result
                sha256.append(digest)
                if small:
                    enlarged.append(image.name)
        pixels_NCHW.flush()
        del pixels_NCHW
        _refuse(faults, len(folder.images))
    return {"sha256": sha256, "enlarged": enlarged}


def _refuse(faults: Sequence[str], images: int) -> None:
    if not faults:
        return
    if len(faults) == 1:
        raise UserError(f"{faults[0]}; repair or remove it")
    shown = "; ".join(faults[:NAMED_FAULTS])
    more = f"; and {len(faults) - NAMED_FAULTS} more" if len(faults) > NAMED_FAULTS else ""
    raise UserError(f"{len(faults)} of {images} images cannot be used: {shown}{more}")
