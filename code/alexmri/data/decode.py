"""Decode the images of a data set in parallel, and tell which of them cannot be read."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from alexmri.contract.resources import free_disk_bytes, size_text, usable_memory_bytes
from alexmri.contract.signals import die_with_parent
from alexmri.data.folders import Folder
from alexmri.data.pixels import (
    PREPROCESSING,
    Preprocessing,
    count_frames,
    fit,
    read_bytes,
    read_picture,
)
from alexmri.errors import UserError, option
from alexmri.files import appearing
from alexmri.terminal import Terminal, first_few

# Which share of the images may be left out because they cannot be read.
MAX_SKIPPED_SHARE = 0.05
# What to do about unreadable images: an error, leave out a few, leave out any number.
BadImages = Literal["fail", "skip", "list"]
# Images per task of a worker, and from how many on the workers are processes. Threads wait for one
# another during half of the work; starting processes takes as long as decoding 6,500 images.
CHUNK = 128
PROCESSES_FROM = 12_000


def decode_all(
    folder: Folder,
    array_path: Path,
    *,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing,
    workers: int,
    terminal: Terminal,
    bad_images: BadImages,
) -> dict[str, Any]:
    """Write the pixels of the readable images to `array_path`, one after the other.

    Returns:
        `sha256` and `sizes` of their files and names of those `enlarged`, in order; `skipped`:
        name -> reason;
        `frames`: name -> how many frames or pages, where that is more than one.

    Raises:
        UserError: images that cannot be read, by name; with "skip", too many of them; a disk
            that cannot hold them decoded.
    """
    images = len(folder.images)
    sha256: list[str] = []
    sizes: list[tuple[int, int]] = []
    enlarged: list[str] = []
    skipped: dict[str, str] = {}
    frames: dict[str, int] = {}
    require_disk(array_path.parent, images * channels * image_size**2)
    with appearing(array_path) as temporary:
        shape = (images, channels, image_size, image_size)
        np.lib.format.open_memmap(temporary, "w+", np.uint8, shape).flush()
        # A full disk must be an error here; met while writing to the map, it would end the process.
        with temporary.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        decode_chunk = partial(
            _decode_chunk,
            array_path=temporary,
            image_size=image_size,
            channels=channels,
            preprocessing=preprocessing,
        )
        starts = range(0, images, CHUNK)
        paths = ([image.path for image in folder.images[i : i + CHUNK]] for i in starts)
        pool = _pool(workers, images)
        try:
            results = chain.from_iterable(pool.map(decode_chunk, starts, paths))
            tracked = terminal.track(results, images, "decoding")
            for image, result in zip(folder.images, tracked, strict=True):
                if isinstance(result, str):
                    skipped[image.name] = result
                    continue
                sha256.append(result.sha256)
                sizes.append(result.size)
                if min(result.size) < image_size:
                    enlarged.append(image.name)
                if result.frames > 1:
                    frames[image.name] = result.frames
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes images was killed, probably for lack of memory"
                f" ({size_text(usable_memory_bytes())}); give the training more memory"
            ) from None
        finally:
            # Where a signal ends the work, the images that wait are not decoded first.
            pool.shutdown(cancel_futures=True)
        refuse_unreadable(skipped, folder, bad_images)
        if skipped:
            _close_ranks(temporary, [image.name not in skipped for image in folder.images])
    return {
        "sha256": sha256,
        "sizes": sizes,
        "skipped": skipped,
        "enlarged": enlarged,
        "frames": frames,
    }


def _close_ranks(array_path: Path, readable: Sequence[bool]) -> None:
    """Move the rows of the readable images to the front, in order."""
    pixels_NCHW = np.load(array_path, mmap_mode="r+")
    for target, source in enumerate(np.flatnonzero(readable)):
        pixels_NCHW[target] = pixels_NCHW[source]
    pixels_NCHW.flush()


def require_disk(folder: Path, needed: int) -> None:
    """Raise UserError where `needed` bytes of images do not fit on the disk of `folder`."""
    free = free_disk_bytes(folder)
    if needed > free:
        raise UserError(
            f"the images need {size_text(needed)} on disk, and {folder} has"
            f" {size_text(free)}; make room there, or name a folder on a larger disk in"
            " ALEXMRI_CACHE_DIR"
        )


def _pool(workers: int, images: int) -> Executor:
    if workers == 1 or images < PROCESSES_FROM:
        return ThreadPoolExecutor(workers)
    # A fork would copy the locks of torch's threads as they happen to stand.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=stay_with_parent)


def stay_with_parent() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


class _Decoded(NamedTuple):
    """The digest of a file, the width and height of its image upright, and how many it holds."""

    sha256: str
    size: tuple[int, int]
    frames: int


def _decode_chunk(
    start: int,
    paths: Sequence[Path],
    *,
    array_path: Path,
    image_size: int,
    channels: int,
    preprocessing: Preprocessing,
) -> list[_Decoded | str]:
    """Decode `paths` into the rows of the array from `start` on.

    Returns:
        For each what is to be known of it, or what is wrong with it.
    """
    pixels_NCHW = np.load(array_path, mmap_mode="r+")
    results: list[_Decoded | str] = []
    for row, path in enumerate(paths, start):
        read = read_image(path, preprocessing)
        if isinstance(read, str):
            results.append(read)
            continue
        data, image = read
        pixels_NCHW[row] = fit(
            image, image_size=image_size, channels=channels, preprocessing=preprocessing
        )
        digest = hashlib.sha256(data).hexdigest()
        results.append(_Decoded(digest, image.size, count_frames(data)))
    return results


def read_image(
    path: Path, preprocessing: Preprocessing = PREPROCESSING
) -> tuple[bytes, Image.Image] | str:
    """Return the bytes of a file and the image in them, or why it cannot be read."""
    try:
        data = read_bytes(path)
        return data, read_picture(data, preprocessing=preprocessing)
    except UserError as error:
        return str(error).removeprefix(f"{path} ").removeprefix("the image ")


def refuse_unreadable(skipped: Mapping[str, str], folder: Folder, bad_images: BadImages) -> None:
    """Raise UserError for images that cannot be read, unless they may and can be left out."""
    if not skipped or bad_images == "list":
        return
    paths = {image.name: str(image.path) for image in folder.images}
    faults = [f"{paths[name]} {reason}" for name, reason in skipped.items()]
    found = f"{len(faults)} of {len(paths)} images cannot be used: {first_few(faults, '; ')}"
    if bad_images == "fail":
        found = f"{faults[0]}; repair or remove it" if len(faults) == 1 else f"{found}; repair them"
        how = option("on_bad_image", "skip")
        raise UserError(f"{found}, or set {how} to leave such images out")
    if len(faults) > MAX_SKIPPED_SHARE * len(paths):
        raise UserError(
            f"{found}; setting {option('on_bad_image', 'skip')} leaves out at most"
            f" {100 * MAX_SKIPPED_SHARE:.0f} % of the images, since more would be another data set"
        )
    whole = {(image.split, image.label) for image in folder.images if image.name not in skipped}
    for image in folder.images:
        if (image.split, image.label) not in whole:
            raise UserError(
                f"no image of class '{image.label}'{f' in {image.split}' if image.split else ''}"
                f" can be read: {found}"
            )
