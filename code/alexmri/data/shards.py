"""Give every host of a job the images that only others have, so that all hold one data set.

SageMaker deals the files of a channel out where it is ShardedByS3Key. What is exchanged is files as
they are: all that follows (classes, people, split, audit, decoding) then is what it is for hosts
that were given everything.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from alexmri.contract.channels import NOT_DATA
from alexmri.data.cache import cache_folder
from alexmri.data.decode import require_disk
from alexmri.data.folders import files_below
from alexmri.errors import UserError
from alexmri.terminal import Terminal

# How much is on the way at once.
PACK_BYTES = 64 * 2**20

# File below the data folder -> its size in bytes and its modification time in nanoseconds.
Listing = Mapping[str, tuple[int, int]]


class Peers(Protocol):
    """One process of each host, seen from one of them."""

    rank: int
    size: int

    def gather_json(self, value: Listing) -> list[Listing]: ...

    def tensor_from(self, rank: int, values: Tensor) -> Tensor: ...


def gathered(data: Path, hosts: Peers, terminal: Terminal) -> Path:
    """Return a folder with the channels of `data` and all files of all `hosts` in them.

    Where each host has every file already that is `data` itself. All hosts call this.

    Raises:
        UserError: hosts have different files of one name, or the disk is too small.
    """
    listings = hosts.gather_json(list_files(data))
    owners = _owners(listings)
    lacking = {name for name in owners if any(name not in listing for listing in listings)}
    if not lacking:
        return data
    own = listings[hosts.rank]
    terminal.say(
        f"{len(owners)} files on {hosts.size} hosts; of them"
        f" {', '.join(str(len(listing)) for listing in listings)}: the hosts exchange"
        f" {len(lacking)} files"
    )
    key = hashlib.sha256(json.dumps([str(data), sorted(owners)]).encode()).hexdigest()[:32]
    whole = cache_folder() / "shards" / key
    shutil.rmtree(whole, ignore_errors=True)  # of a run that was stopped
    for name in own:
        place = whole / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(data / name)
    sizes = {name: listings[owner][name] for name, owner in owners.items()}
    require_disk(whole, sum(sizes[name][0] for name in owners if name not in own))
    for owner in range(hosts.size):
        theirs = sorted(name for name in lacking if owners[name] == owner)
        for pack in _packs(theirs, sizes):
            content = torch.empty(sum(sizes[name][0] for name in pack), dtype=torch.uint8)
            if owner == hosts.rank:
                _read(data, pack, sizes, content)
            _write(whole, pack, sizes, hosts.tensor_from(owner, content), own)
    return whole


def list_files(data: Path) -> dict[str, tuple[int, int]]:
    """Return the files in the channels below `data`, but not those that are no data."""
    found: dict[str, tuple[int, int]] = {}
    for channel in sorted(data.iterdir()) if data.is_dir() else ():
        if channel.is_dir() and channel.name not in NOT_DATA and not channel.name.startswith("."):
            for path in files_below(channel):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    name = path.relative_to(data).as_posix()
                    found[name] = status.st_size, status.st_mtime_ns
    return found


def _owners(listings: Sequence[Listing]) -> dict[str, int]:
    """Return which host passes on each file: the first that has it."""
    owners: dict[str, int] = {}
    for host, listing in enumerate(listings):
        for name, (size, _) in listing.items():
            first = listings[owners.setdefault(name, host)][name][0]
            if size != first:
                raise UserError(
                    f"two hosts have different files {name}: of {first} and of {size} bytes; give"
                    " all hosts one data set"
                )
    return owners


def _packs(names: Sequence[str], sizes: Listing) -> Iterator[list[str]]:
    pack: list[str] = []
    full = 0
    for name in names:
        size = sizes[name][0]
        if pack and full + size > PACK_BYTES:
            yield pack
            pack, full = [], 0
        pack.append(name)
        full += size
    if pack:
        yield pack


def _read(data: Path, pack: Sequence[str], sizes: Listing, content: Tensor) -> None:
    start = 0
    for name in pack:
        end = start + sizes[name][0]
        try:
            there = (data / name).read_bytes()
        except OSError as error:
            raise UserError(f"{data / name} cannot be read: {error.strerror}") from None
        if len(there) != end - start:
            raise UserError(f"{data / name} changed while the hosts exchanged their files")
        content.numpy()[start:end] = memoryview(there)
        start = end


def _write(whole: Path, pack: Sequence[str], sizes: Listing, content: Tensor, own: Listing) -> None:
    start = 0
    for name in pack:
        size, modified = sizes[name]
        if name not in own:
            place = whole / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content.numpy()[start : start + size].tobytes())
            os.utime(place, ns=(modified, modified))  # decoded once, found again when resumed
        start += size
