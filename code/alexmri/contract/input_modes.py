"""The input mode of each channel, from inputdataconfig.json: refuse those without all files."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alexmri.contract.channels import NOT_DATA, is_system_name
from alexmri.errors import UserError

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
                f"the channel '{channel}' deals its files out to the hosts (S3DataDistributionType"
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
        if path.is_file() and path.suffix.lower() in (".manifest", ".jsonl"):
            with path.open("rb") as file:
                line = file.readline(FIRST_LINE_BYTES)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and any(key.endswith("-ref") for key in record):
                return True
    return False
