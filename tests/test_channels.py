"""Which folders below input/data are data, and what a job is told when they will not do."""

from pathlib import Path

import pytest

from alexmri.contract.inputs import find_channels
from alexmri.errors import UserError


def lay_out(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


@pytest.mark.parametrize("name", ["train", "training", "data"])
def test_one_channel_alone_is_the_whole_data_set(tmp_path: Path, name: str) -> None:
    root = lay_out(tmp_path, f"{name}/A/1.png")
    assert find_channels(root) == {"train": root / name}


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_three_channels_are_the_three_splits(tmp_path: Path, name: str) -> None:
    root = lay_out(tmp_path, "training/A/1.png", f"{name}/A/2.png", "test/A/3.png")
    assert find_channels(root) == {
        "train": root / "training",
        "validation": root / name,
        "test": root / "test",
    }


def test_what_the_platform_puts_beside_the_data_is_not_data(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path, "train/A/1.png", "code/x.py", "sm_drivers/y.py", "train-manifest", ".hidden/z"
    )
    (root / "val-manifest").mkdir()
    assert find_channels(root) == {"train": root / "train"}


@pytest.mark.parametrize("name", ["lost+found", "__MACOSX", "$RECYCLE.BIN", "@eaDir"])
def test_what_systems_leave_is_no_channel_and_no_data(tmp_path: Path, name: str) -> None:
    root = lay_out(tmp_path, "train/A/1.png", f"{name}/x", f"validation/{name}/x")
    with pytest.raises(UserError, match="channel 'validation' is empty"):
        find_channels(root)
    lay_out(root, "validation/A/1.png")
    assert set(find_channels(root)) == {"train", "validation"}


def test_an_empty_channel_is_named(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "train/A/1.png", "validation/A/.DS_Store")
    with pytest.raises(UserError, match=r"channel 'validation' is empty: .*validation holds no"):
        find_channels(root)


@pytest.mark.parametrize("files", [(), ("test/A/1.png",)])
def test_no_training_data(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="there is no training data"):
        find_channels(lay_out(tmp_path / "data", *files))


def test_two_channels_of_one_meaning_are_refused(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "train/A/1.png", "training/A/1.png")
    with pytest.raises(UserError, match="'train' and 'training' are both train data"):
        find_channels(root)


def test_a_channel_of_unknown_name_is_refused(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "train/A/1.png", "vlidation/A/1.png")
    with pytest.raises(UserError, match="channel 'vlidation' .* is not a known channel"):
        find_channels(root)
