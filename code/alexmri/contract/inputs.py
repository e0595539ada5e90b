"""What a platform gives a job: its channels, how each of them is delivered, and its hosts."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.errors import UserError
from alexmri.files import read_json_object

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
# A channel named `data` holds the whole data set, as `train` does where it stands alone.
CHANNEL_NAMES = SPLIT_NAMES | {"data": "train"}
# The SageMaker SDK ships the user's scripts and its own starter in these.
NOT_DATA = frozenset({"code", "sm_drivers"})
# What file systems, network drives, archives and tools leave in any folder, in small letters:
# ext4, Windows, macOS, Synology, QNAP, NetApp, Android, Python. None of it is anybody's data.
SYSTEM_NAMES = frozenset(
    {
        *("lost+found", "$recycle.bin", "recycler", "recycled", "system volume information"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$extend", "$winreagent", "lost.dir"),
        *("__macosx", "network trash folder", "temporary items", "icon\r"),
        *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
        *("~snapshot", "__pycache__"),
    }
)
CHKDSK = re.compile(r"found\.\d{3}")


def find_channels(data: Path) -> dict[str, Path]:
    """Return the channels below `data` as split name -> folder; `train` is always among them.

    A train channel alone holds the whole data set, to be split by the program.

    Raises:
        UserError: no train channel, a channel without a file, of an unknown name, or given twice.
    """
    found: dict[str, Path] = {}
    for folder in _channel_folders(data):
        split = CHANNEL_NAMES.get(folder.name.lower())
        if split is None:
            raise UserError(
                f"channel '{folder.name}' ({folder}) is not a known channel; name it train,"
                " validation or test, or training or data for a data set to be split"
            )
        if split in found:
            raise UserError(
                f"the channels '{found[split].name}' and '{folder.name}' are both {split} data;"
                " keep one"
            )
        found[split] = folder
    if "train" not in found:
        names = ", ".join(found) or "none"
        raise UserError(
            f"there is no training data: of the channels train, training and data {data} must hold"
            f" one (found: {names})"
        )
    for folder in found.values():
        if not has_files(folder):
            raise UserError(
                f"channel '{folder.name}' is empty: {folder} holds no file; put one folder of"
                " images per class there"
            )
    return found


def is_system_name(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by a system."""
    small = name.lower()
    return small.startswith(".") or small in SYSTEM_NAMES or bool(CHKDSK.fullmatch(small))


def has_files(folder: Path) -> bool:
    """Whether there is any file below `folder`."""
    return any(
        not is_system_name(part.name) and (part.is_file() or (part.is_dir() and has_files(part)))
        for part in folder.iterdir()
    )


def _channel_folders(data: Path) -> list[Path]:
    if not data.is_dir():
        return []
    return sorted(
        folder
        for folder in data.iterdir()
        if folder.is_dir()
        and not is_system_name(folder.name)
        and folder.name not in NOT_DATA
        and not folder.name.endswith("-manifest")
    )


FILES = "use File or FastFile mode with one folder of images per class"
# As the API limits them (ChannelName).
CHANNEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# How much of a file is read to tell an augmented manifest.
FIRST_LINE_BYTES = 65536


def check_input_modes(config: Mapping[str, Any], data: Path, *, hosts: int = 1) -> None:
    """Refuse channels that do not arrive as files, and as all of their files on each of `hosts`.

    Raises:
        UserError: Pipe mode, an augmented manifest, a part of the files for each of several hosts,
            or a channel without its folder.
    """
    for channel, said in config.items():
        if channel in NOT_DATA:
            continue
        if not CHANNEL_NAME.fullmatch(channel):
            raise UserError(
                f"inputdataconfig.json names a channel {json.dumps(channel[:80])}; a name has 1 to"
                " 64 letters, digits, dots, hyphens and underscores"
            )
        if not isinstance(said, Mapping):
            raise UserError(
                f"inputdataconfig.json must describe the channel '{channel}' by an object, not by"
                f" {json.dumps(said)}"
            )
        spoken = {text.lower() for text in _words(said)}
        if "augmentedmanifestfile" in spoken or said.get("AttributeNames"):
            raise _augmented(channel)
        if "recordio" in spoken:
            raise UserError(
                f"the channel '{channel}' is wrapped (RecordWrapperType RecordIO); use None:"
                f" {FILES}"
            )
        if "pipe" in spoken:
            raise _piped(channel)
        if "shardedbys3key" in spoken and hosts > 1:
            raise UserError(
                f"the channel '{channel}' distributes its files over the hosts"
                " (S3DataDistributionType"
                " ShardedByS3Key); use FullyReplicated, so that every host has all images"
            )
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        if is_system_name(path.name):
            continue
        if path.is_fifo():
            raise _piped(path.name.rpartition("_")[0] or path.name)
        if path.is_dir() and path.name not in NOT_DATA and _holds_augmented_manifest(path):
            raise _augmented(path.name)
    for channel in config:
        if channel not in NOT_DATA and not (data / channel).is_dir():
            raise UserError(
                f"inputdataconfig.json names the channel '{channel}', but there is no folder"
                f" {data / channel}; check the channel's S3 address"
            )


def _words(said: Any) -> Iterator[str]:
    """Yield every text in what is said of a channel, also where it is nested as in a request."""
    if isinstance(said, Mapping):
        for value in said.values():
            yield from _words(value)
    elif isinstance(said, str):
        yield said


def _piped(channel: str) -> UserError:
    return UserError(f"the channel '{channel}' comes in Pipe mode, which has no files; {FILES}")


def _augmented(channel: str) -> UserError:
    return UserError(
        f"the channel '{channel}' is an augmented manifest (S3DataType AugmentedManifestFile);"
        f" use S3Prefix: {FILES}"
    )


def _holds_augmented_manifest(folder: Path) -> bool:
    """Whether the files directly in `folder` are JSON lines with references to S3 objects."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".manifest", ".jsonl") and path.is_file():
            with path.open("rb") as file:
                line = file.readline(FIRST_LINE_BYTES)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and any(key.endswith("-ref") for key in record):
                return True
    return False


@dataclass(frozen=True, slots=True)
class Hosts:
    """Who works on the job; the first of `names`, in the platform's order, leads.

    SageMaker sorts by letters: algo-1, algo-10, algo-2. The rank is the place in that list.
    """

    current: str = "algo-1"
    names: tuple[str, ...] = ("algo-1",)
    interface: str = "eth0"
    document: dict[str, Any] | None = None

    @property
    def rank(self) -> int:
        return self.names.index(self.current)

    @property
    def first(self) -> str:
        return self.names[0]


def read_hosts(path: Path) -> Hosts | None:
    """Return the hosts named in resourceconfig.json, or None where there is no such file.

    Raises:
        UserError: the file does not say who this host is, or who the hosts are.
    """
    document = read_json_object(path)
    if document is None:
        return None
    current, names = document.get("current_host"), document.get("hosts")
    if not isinstance(names, list) or not names or not all(n and isinstance(n, str) for n in names):
        raise UserError(f'{path} names no hosts; it must say "hosts": ["algo-1", …]')
    if not isinstance(current, str) or current not in names:
        raise UserError(
            f'{path} says "current_host": {json.dumps(current)}, which is not among its hosts'
            f" {', '.join(names)}"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a host twice: {', '.join(names)}")
    interface = str(document.get("network_interface_name") or "eth0")
    return Hosts(current, tuple(names), interface, document)
