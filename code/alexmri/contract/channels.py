"""Find the data of a job among the folders a platform mounts, one per channel."""

import re
from pathlib import Path

from alexmri.errors import UserError

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
                f"channel '{folder.name}' ({folder}) has no meaning here; name it train, validation"
                " or test, or training or data for a data set to be split"
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
