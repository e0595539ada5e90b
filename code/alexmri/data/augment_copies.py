"""Write a data set anew with augmented copies of its training images, and of no others."""

import csv
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from alexmri.data.augment_batched import BatchedAugment
from alexmri.data.folders import Folder, ImageFile, discover
from alexmri.data.groups import find_groups
from alexmri.data.pixels import read_picture
from alexmri.errors import UserError
from alexmri.files import filling
from alexmri.settings import Settings
from alexmri.terminal import Terminal


def write_copies(
    source: Path,
    target: Path,
    *,
    copies: int,
    settings: Settings,
    workers: int,
    terminal: Terminal,
) -> tuple[int, int]:
    """Copy `source` to `target` and add `copies` of each training image, as PNG of its own size.

    The copies of CLASS/FILE lie in CLASS/copy-1/FILE and so on: the name, which may tell the
    person, stays. They are a function of the settings' seed and of the names of the images.
    Nothing appears in `target` before everything is written.

    Returns:
        How many images were there, and how many were added.

    Raises:
        UserError: `source` is not split into folders, or `target` is not empty.
    """
    _refuse_target(source, target)
    folder = discover(source)
    if not {"train", "validation"} <= {image.split for image in folder.images}:
        raise UserError(
            f"{source} does not hold a train and a valid folder (test is optional); where images"
            " are split at training time, copies of one image would stand on both sides"
        )
    trained = [image for image in folder.images if image.split == "train"]
    _refuse_twins(trained)
    augment = BatchedAugment(settings.model_copy(update={"augment_probability": 1.0}))

    def write(task: tuple[int, ImageFile]) -> None:
        row, image = task
        pixels_CHW = _read(image.path)
        for copy in range(1, copies + 1):
            moved_1CHW = augment(pixels_CHW[None], copy, np.array([row]))
            _save(moved_1CHW[0], new / _copy_name(image, copy))

    with filling(target) as new, ThreadPoolExecutor(workers) as pool:
        for image in folder.images:
            (new / image.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image.path, new / image.name)
        for image in trained:
            for copy in range(1, copies + 1):
                (new / _copy_name(image, copy)).parent.mkdir(exist_ok=True)
        for _ in terminal.track(pool.map(write, enumerate(trained)), len(trained), "augmenting"):
            pass
        if settings.groups_file:
            _write_groups(folder, settings.groups_file, copies, new)
    return len(folder.images), len(trained) * copies


def _copy_name(image: ImageFile, copy: int) -> str:
    path = PurePosixPath(image.name)
    return str(path.parent / f"copy-{copy}" / f"{path.stem}.png")


def _read(path: Path) -> torch.Tensor:
    pixels = np.array(read_picture(path))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def _save(pixels_CHW: torch.Tensor, path: Path) -> None:
    pixels_HWC = pixels_CHW.permute(1, 2, 0).numpy()
    Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC).save(path)


def _write_groups(folder: Folder, groups_file: str, copies: int, new: Path) -> None:
    """Write the CSV of people again, with a row for every copy."""
    groups = find_groups(folder.images, folder.root, regex=None, csv_file=groups_file)
    assert groups is not None  # noqa: S101 - a CSV names everybody, or find_groups refuses it
    with (new / Path(groups_file).name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "subject"])
        for image, subject in zip(folder.images, groups.subjects, strict=True):
            writer.writerow([image.name, subject])
            for copy in range(1, copies + 1):
                if image.split == "train":
                    writer.writerow([_copy_name(image, copy), subject])


def _refuse_target(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies inside the data folder {source}; name a folder elsewhere")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not empty; name a new or empty folder for the copies")


def _refuse_twins(images: Sequence[ImageFile]) -> None:
    """Refuse a.jpg beside a.png, whose copies would have one name."""
    seen: dict[str, ImageFile] = {}
    for image in images:
        twin = seen.setdefault(_copy_name(image, 1), image)
        if twin is not image:
            raise UserError(
                f"copies of {twin.name} and {image.name} would have the same name; rename one"
            )
