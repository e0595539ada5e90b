"""Find the data of a job among the folders a platform mounts, one per channel."""

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


def has_files(folder: Path) -> bool:
    """Whether there is any visible file below `folder`."""
    return any(
        not part.name.startswith(".") and (part.is_file() or (part.is_dir() and has_files(part)))
        for part in folder.iterdir()
    )


def _channel_folders(data: Path) -> list[Path]:
    if not data.is_dir():
        return []
    return sorted(
        folder
        for folder in data.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and folder.name not in NOT_DATA
        and not folder.name.endswith("-manifest")
    )
