"""Find the class folders of a data set and the images in them, and say what is left out."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.contract.inputs import SPLIT_NAMES, is_system_name
from alexmri.errors import UserError
from alexmri.terminal import MAX_NAMED, first_few, number_of

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp"),
        *(".png", ".bmp", ".tif", ".tiff", ".webp"),
    }
)
SCAN_SUFFIXES = frozenset(
    {
        *(".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".mgh", ".mgz", ".mnc", ".nrrd", ".mha"),
        *(".mhd", ".hdr", ".img", "DICOM"),
    }
)
# What may lie beside images without being data: it is counted, and no warning names it.
NOTE_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
        *(".html", ".htm", ".pdf", ".log", ".ini", ".db", ".sqlite", ".py", ".ipynb", ".sh"),
        *(".bat", ".xls", ".xlsx", ".doc", ".docx", ".odt", ".ods", ".rtf", ".toml", ".cfg"),
        *(".lnk", ".url", ".manifest", ".lock", ".md5", ".sha256"),
    }
)
NOTE = "note"
# Sub-folders of these names divide the images of a class; they are no classes.
VIEWS = frozenset(
    {
        *("axial", "coronal", "sagittal", "transverse", "left", "right", "lh", "rh", "t1", "t2"),
        *("t1w", "t2w", "flair", "pd", "dwi", "swi", "adc", "bold", "mri", "pet"),
        *("image", "images", "mask", "masks", "slices", "raw", "male", "female", "m", "f"),
    }
)


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
    """What discovery found: images in a fixed order, and classes by name.

    `ignored_files` counts all files that are not read. `left_out` names those that may be data, and
    anything else that a reader should know of the folders, in one sentence each, without paths of
    this machine.
    """

    root: Path
    classes: tuple[str, ...]
    images: tuple[ImageFile, ...]
    ignored_files: int
    is_split: bool
    left_out: tuple[str, ...] = ()


def discover(root: Path) -> Folder:
    """Find the images below `root`: class folders, or train / valid / test folders of them.

    Folders inside a class folder are searched too. A `train` folder without siblings counts as the
    whole data set. Hidden files, and what systems leave in folders, are passed over.

    Raises:
        UserError: no folder, no class folders, one class only, an empty class, class names that
            differ only in case, or class folders that are splits or whole data sets.
    """
    _require_folder(root)
    splits = _split_folders(root)
    if not splits:
        return _collect(root, {None: root})
    tops = {None: splits["train"]} if set(splits) == {"train"} else splits
    files = list(files_below(root, depth=0))
    beside = [*_loose_files("the data folder", files), *_beside(root, splits)]
    return _collect(root, tops, beside, loose=len(files))


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
    return _collect(common, {split: folder.resolve() for split, folder in channels.items()})


def discover_for_test(root: Path) -> Folder:
    """Find the images to measure a model on: those of the test folder, or all where none is.

    One class is enough, and a class may be empty.
    """
    _require_folder(root)
    test = next((f for f in _folders(root) if SPLIT_NAMES.get(f.name.lower()) == "test"), root)
    return _collect(root, {"test": test})


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; pass a folder of class folders")


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


def _beside(root: Path, splits: Mapping[str, Path]) -> list[str]:
    """Name the folders beside those of the splits, which belong to no split."""
    known = set(splits.values())
    sentences = []
    for folder in _folders(root):
        if folder in known:
            continue
        files = [path for path in files_below(folder) if not is_system_name(path.name)]
        if not files:
            continue
        images = sum(_is_image(path) for path in files)
        count = (
            number_of(images, "image") if images else number_of(len(files), "file") + ", no image"
        )
        names = ", ".join(sorted(path.name for path in known))
        sentences.append(
            f"left out: the folder '{folder.name}' ({count}), because it stands beside {names} and"
            " is not named train, validation or test; rename it if it is one of them"
        )
    return sentences


def _collect(
    root: Path, tops: Mapping[Any, Path], beside: Sequence[str] = (), loose: int = 0
) -> Folder:
    """Read the class folders in each of `tops` (split or None -> folder).

    `beside` are sentences on what was left out so far, `loose` is how many files that were.
    """
    to_train = None in tops or "train" in tops
    listed = {split: {each.name: each for each in _folders(top)} for split, top in tops.items()}
    for split, folders in listed.items():
        _refuse_splits_as_classes(tops[split], folders, to_train)
    classes = tuple(sorted({name for folders in listed.values() for name in folders}))
    _refuse_names_that_differ_in_case(root, classes)
    _require_classes(root, classes, tops, to_train)

    sentences, ignored = list(beside), loose
    images: list[ImageFile] = []
    others: dict[str, Counter[str]] = {}
    for split, folders in listed.items():
        files = list(files_below(tops[split], depth=0))
        ignored += len(files)
        sentences += _loose_files(f"the {split or 'data'} folder", files)
        inner: dict[str, set[str]] = {}
        for label, folder in folders.items():
            own, left = _split_kinds(files_below(folder))
            ignored += left.total()
            left.pop(NOTE, None)
            if not own and split in (None, "train"):
                raise UserError(_no_images(folder, left))
            for path in own:
                name = path.relative_to(root).as_posix()
                refuse_undecodable(name)
                images.append(ImageFile(name, label, split, path))
            parents = {path.parent for path in own}
            inner[label] = {parent.relative_to(folder).as_posix() for parent in parents}
            others[folder.relative_to(root).as_posix()] = left
        sentences += _same_subfolders(tops[split], inner)
    trained = {image.label for image in images if image.split in (None, "train")}
    for label in classes:
        if to_train and label not in trained:
            raise UserError(f"class '{label}' has images, but none in the train folder of {root}")
    if not images:
        kinds = sum(others.values(), Counter[str]())
        found = f", only {list_kinds(kinds)}: {_reason(kinds)}" if kinds else ""
        raise UserError(f"{root} holds no images in its class folders{found}")
    sentences += _other_kinds(others)
    return Folder(root, classes, tuple(sorted(images)), ignored, None not in tops, tuple(sentences))


def _require_classes(
    root: Path, classes: Sequence[str], tops: Mapping[Any, Path], to_train: bool
) -> None:
    if not classes:
        where = " and ".join(split for split in tops if split)
        raise UserError(
            f"{root} has no class folders{f' in {where}' if where else ''}; expected one folder"
            " per class, such as NonDemented/ and MildDemented/, with the images inside"
        )
    if to_train and len(classes) == 1:
        raise UserError(
            f"{root} has only one class folder, '{classes[0]}'; at least two are needed"
            " (if the classes are inside it, pass that folder instead)"
        )


def _refuse_splits_as_classes(top: Path, folders: Mapping[str, Path], to_train: bool) -> None:
    """Refuse folders that are named as splits where class folders should be."""
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if not splits:
        return
    has_train = any(SPLIT_NAMES[name.lower()] == "train" for name in splits)
    if not to_train:
        mend = "pass the one to measure on, or name it test"
    elif has_train:
        mend = (
            f"pass {top} as the only data folder or channel, or pass these folders one by one as"
            " train, validation and test"
        )
    else:
        mend = "put the training images into a train folder beside them, or pass one of them"
    raise UserError(
        f"{top} holds {_listed(splits)} where class folders should be, which is how splits are"
        f" named, not classes; {mend}"
    )


def _same_subfolders(top: Path, inner: Mapping[str, set[str]]) -> list[str]:
    """Refuse class folders that hold the same sub-folders: the classes are probably those.

    `inner` has the folders with images of each class folder in `top`, "." for itself. Where some
    hold images themselves too, or where names have digits and may be subjects, numbered anew in
    each class, a sentence says what was found.
    """
    held = Counter(name for names in inner.values() for name in names - {"."})
    shared = sorted(name for name, count in held.items() if 2 * count > len(inner))
    splits = [name for name in shared if name.split("/")[0].lower() in SPLIT_NAMES]
    if len(inner) < 2 or (len(shared) < 2 and not splits):
        return []
    if all(VIEWS.intersection(name.lower().split("/")) for name in shared):
        return []
    outer = [label for label, names in inner.items() if names.issuperset(shared)] or list(inner)
    found = f"the folders {_listed(outer)} hold the same sub-folders {_listed(shared)}"
    numbered = any(letter.isdigit() for name in shared for letter in name)
    if numbered or any("." in inner[label] for label in outer):
        return [f"{found}: if these are the classes, pass one of the outer folders instead"]
    if splits:
        mend = f"put the splits outside, as in {splits[0].split('/')[0]}/{outer[0]}, or pass one"
    else:
        mend = f"pass one of them, such as {top / outer[0]}"
    raise UserError(
        f"{found}, so {top} is probably one level too high; {mend}"
        f" (if '{outer[0]}' is a class, move its images into one folder)"
    )


def _refuse_names_that_differ_in_case(root: Path, classes: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"class folders '{other}' and '{name}' in {root} differ only in case;"
                " merge them or rename one"
            )


def _split_kinds(files: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Return the images among `files`, and the others counted by kind."""
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in files:
        if _is_image(path):
            images.append(path)
        else:
            others[kind_of(path)] += 1
    return images, others


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_system_name(path.name)


def kind_of(path: Path) -> str:
    """Return the suffix of a file that may be data, "DICOM" by its content, or NOTE."""
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if is_system_name(name) or suffix in NOTE_SUFFIXES:
        return NOTE
    if not suffix or suffix[1:].isdigit():  # scanners write DICOM files as IM0001 or 1.2.840.1
        return "DICOM" if _is_dicom(path) else "without a suffix"
    return suffix


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _loose_files(title: str, files: Iterable[Path]) -> list[str]:
    """Name the files beside class folders that may be data."""
    images, others = _split_kinds(files)
    others.pop(NOTE, None)
    found = [number_of(len(images), "image")] if images else []
    found += [list_kinds(others)] if others else []
    if not found:
        return []
    return [f"left out: {' and '.join(found)} in {title}, because they are in no class folder"]


def _other_kinds(others: Mapping[str, Counter[str]]) -> list[str]:
    """Name the files in class folders that are not read, one sentence a kind."""
    sentences = []
    for kind in sorted({kind for counts in others.values() for kind in counts}):
        places = [f"{name} {counts[kind]}" for name, counts in others.items() if counts[kind]]
        count = Counter({kind: sum(counts[kind] for counts in others.values())})
        sentences.append(
            f"left out: {list_kinds(count)} in class folders ({first_few(places)}):"
            f" {_reason(count)}"
        )
    return sentences


def _no_images(folder: Path, others: Counter[str]) -> str:
    if others:
        return f"class folder {folder} holds {list_kinds(others)} and no images: {_reason(others)}"
    suffixes = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    return f"class folder {folder} holds no images ({suffixes}); fill or remove it"


def _reason(kinds: Iterable[str]) -> str:
    """Say what to do with files that are not read."""
    if SCAN_SUFFIXES.intersection(kinds):
        return "scans are not trained on; `alexmri slices` cuts them into slices"
    return "only JPEG, PNG, BMP, TIFF and WebP are read; convert them to PNG"


def list_kinds(kinds: Mapping[str, int]) -> str:
    """Return `1 .mgz file and 2 .nrrd files`."""
    return " and ".join(
        f"{number_of(count, 'file')} {kind}" if " " in kind else number_of(count, f"{kind} file")
        for kind, count in sorted(kinds.items())
    )


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    if len(quoted) < 2 or len(quoted) > MAX_NAMED:
        return first_few(quoted)
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if not is_system_name(p.name) and p.is_dir())


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """Yield the files below `folder`, each once even where links make a loop."""
    visited: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        real = os.path.realpath(current)
        if real in visited or depth == 0:
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not is_system_name(name))
        if real not in visited:
            yield from (Path(current, name) for name in sorted(files))
        visited.add(real)


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")


def refuse_undecodable(name: str) -> None:
    """Refuse a file name that no table or JSON file can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {name!r} is not valid UTF-8; rename it") from None
