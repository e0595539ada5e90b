"""Find the class folders of a data set and the images in them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.channels import SPLIT_NAMES
from alexmri.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True, order=True)
class ImageFile:
    """One image: its name below the root with forward slashes, its class, the split it came in."""

    name: str
    label: str
    split: str | None
    path: Path

    @property
    def class_and_file(self) -> str:
        """The name below the folder of the split: `CLASS/…/FILE`."""
        parts = self.name.split("/")
        return "/".join(parts[parts.index(self.label) :]) if self.label in parts else self.name


@dataclass(frozen=True, slots=True)
class Folder:
    """What discovery found: images in a fixed order, classes by name, files that are no images."""

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    ignored_files: int
    is_split: bool


def discover(root: Path) -> Folder:
    """Find the images below `root`: class folders, or train / valid / test folders of them.

    Folders inside a class folder are searched too. Hidden files and files that are no images
    are counted, not read. A `train` folder without siblings counts as the whole data set.

    Raises:
        UserError: no folder, no class folders, one class only, an empty class, or class names
            that differ only in case.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; pass a folder of class folders")
    splits = _split_folders(root)
    ignored = sum(1 for _ in files_below(root, depth=0))
    found: dict[str | None, Mapping[str, Path]]
    if not splits:
        found = {None: _class_folders(root)}
    elif set(splits) == {"train"}:
        found = {None: _class_folders(splits["train"])}
    else:
        found = {split: _class_folders(folder) for split, folder in splits.items()}
    return _collect(root, found, ignored)


def discover_channels(channels: Mapping[str, Path]) -> Folder:
    """Find the images of several folders given as splits (keys: train, validation, test).

    A single folder is discovered as by `discover`, whatever its key.
    """
    if len(channels) == 1:
        return discover(next(iter(channels.values())))
    if "train" not in channels:
        raise UserError(f"there is no train folder among {', '.join(sorted(channels))}")
    for split, folder in channels.items():
        if not folder.is_dir():
            raise UserError(f"the {split} folder {folder} does not exist")
    common = Path(os.path.commonpath([folder.resolve() for folder in channels.values()]))
    found: dict[str | None, Mapping[str, Path]] = {
        split: _class_folders(folder.resolve()) for split, folder in channels.items()
    }
    return _collect(common, found, ignored=0)


def discover_for_test(root: Path) -> Folder:
    """Find the images to measure a model on: those of the test folder, or all where none is.

    One class is enough, and a class may be empty.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; pass a folder of class folders")
    test = next((f for f in _folders(root) if SPLIT_NAMES.get(f.name.lower()) == "test"), root)
    return _collect(root, {"test": _class_folders(test)}, ignored=0)


def _split_folders(root: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split and split in splits:
            raise UserError(
                f"{root} holds two folders for {split}, '{splits[split].name}' and"
                f" '{folder.name}'; keep one"
            )
        if split:
            splits[split] = folder
    return splits if "train" in splits else {}


def _collect(root: Path, found: Mapping[str | None, Mapping[str, Path]], ignored: int) -> Folder:
    classes = tuple(sorted({name for folders in found.values() for name in folders}))
    _refuse_case_twins(root, classes)
    where = " and ".join(str(split) for split in found if split) or "the data folder"
    if not classes:
        raise UserError(
            f"{root} has no class folders in {where}; expected one folder per class,"
            " such as NonDemented/ and MildDemented/, with the images inside"
        )
    to_train = None in found or "train" in found
    if to_train and len(classes) == 1:
        raise UserError(
            f"{root} has only one class folder, '{classes[0]}'; at least two are needed"
            " (if the classes are inside it, pass that folder instead)"
        )
    images: list[ImageFile] = []
    for split, folders in found.items():
        for label, folder in folders.items():
            before = len(images)
            for path in files_below(folder):
                if path.name.startswith(".") or path.suffix.lower() not in IMAGE_SUFFIXES:
                    ignored += 1
                    continue
                name = path.relative_to(root).as_posix()
                _refuse_undecodable(name)
                images.append(ImageFile(name, label, split, path))
            if len(images) == before and split in (None, "train"):
                raise UserError(
                    f"class folder {folder} holds no images"
                    f" ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}); fill or remove it"
                )
    trained = {image.label for image in images if image.split in (None, "train")}
    for label in classes:
        if to_train and label not in trained:
            raise UserError(f"class '{label}' has images, but none in the train folder of {root}")
    if not images:
        raise UserError(f"{root} holds no images in its class folders")
    return Folder(root, classes, tuple(sorted(images)), ignored, is_split=None not in found)


def _refuse_case_twins(root: Path, classes: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(name.casefold(), name)
        if twin != name:
            raise UserError(
                f"class folders '{twin}' and '{name}' in {root} differ only in case;"
                " merge them or rename one"
            )


def _class_folders(root: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in _folders(root)}


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Yield the files below `folder`, each once even where links make a loop."""
    visited: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        real = os.path.realpath(current)
        if real in visited or depth == 0:
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            yield from (Path(current, name) for name in sorted(files))
        visited.add(real)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")


def _refuse_undecodable(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {name!r} is not valid UTF-8; rename it") from None
