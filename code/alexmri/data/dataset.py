"""A data set ready for training: pixels, labels, subjects and the split of every image."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.cache import DecodedCache, open_cache
from alexmri.data.folders import Folder, discover_channels
from alexmri.data.nearest import unit_vectors
from alexmri.data.pixels import PREPROCESSING, PixelRows, Pixels, Preprocessing
from alexmri.data.slicing import Slicing, read_slicing
from alexmri.data.split import (
    CALIBRATION,
    SPLITS,
    Fold,
    Split,
    carve_calibration,
    compared_with,
    split_as_given,
    split_for_fold,
    split_randomly,
    subjects_between,
    subjects_shared,
)
from alexmri.data.subjects import KAGGLE, Subjects, find_subjects, misfits
from alexmri.data.synthetic import FOUND_BY_NAMES, is_synthetic
from alexmri.errors import UserError, option
from alexmri.settings import Settings, cases_needed
from alexmri.terminal import Terminal, first_few, number_of


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of an array, copied into memory only when asked for; indexed by slice or array."""

    array_NCHW: PixelRows
    rows_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, wanted: slice | NDArray[np.int64]) -> Pixels:
        return self.array_NCHW[self.rows_N[wanted]]


@dataclass(frozen=True, slots=True)
class Part:
    """The images of one split; `pixels_NCHW` are `uint8`, and may lie on disk."""

    pixels_NCHW: PixelRows
    labels_N: NDArray[np.int64]
    subjects: tuple[str, ...] | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, slots=True)
class Dataset:
    """All images of a run in a fixed order, with who is on them and where each belongs.

    `synthetic` is true where alexmri itself has drawn images of it. `slicing` is how `alexmri
    slices` has cut them, None for other images.
    """

    folder: Folder
    subjects: Subjects | None
    cache: DecodedCache
    split: Split
    synthetic: bool = False
    slicing: Slicing | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.folder.classes

    @property
    def labels_N(self) -> NDArray[np.int64]:
        number = {label: i for i, label in enumerate(self.classes)}
        return np.array([number[image.label] for image in self.folder.images], dtype=np.int64)

    def part(self, split: str) -> Part:
        """Return the images of `split`; their pixels stay in the memory-mapped cache."""
        rows = self.split.indices(split)
        rows_N = np.array(rows, dtype=np.int64)
        return Part(
            Rows(self.cache.pixels_NCHW, rows_N),
            self.labels_N[rows_N],
            tuple(self.subjects.ids[i] for i in rows) if self.subjects else None,
            tuple(self.folder.images[i].name for i in rows),
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return split -> class -> number of images."""
        found = Counter(
            (split, image.label)
            for split, image in zip(self.split.assigned, self.folder.images, strict=True)
        )
        splits = [*SPLITS, *([CALIBRATION] if CALIBRATION in self.split.assigned else [])]
        return {split: {name: found[split, name] for name in self.classes} for split in splits}

    @property
    def compared_with(self) -> str | None:
        """The split that is compared with train: test, or validation where no image is in test."""
        return compared_with(self.split)

    @property
    def subjects_shared(self) -> int | None:
        """How many subjects are both in train and in `compared_with`; None where unknown."""
        return subjects_shared(self.split, self.subjects.ids) if self.subjects else None

    @property
    def subjects_between(self) -> dict[str, int] | None:
        """How many subjects any two splits share; None where subjects are unknown."""
        return subjects_between(self.split, self.subjects.ids) if self.subjects else None

    @property
    def notes(self) -> list[str]:
        """What was left out of the folders, whose subject is unknown, how images were split."""
        unknown = unknown_subjects(self.folder, self.subjects)
        return [*self.folder.left_out, *unknown, *self.split.notes]

    @property
    def split_fingerprint(self) -> str:
        """SHA-256 over content, class and split of every image in order: what a run trains on."""
        rows = zip(self.cache.sha256, self.folder.images, self.split.assigned, strict=True)
        lines = "\n".join(f"{sha}/{image.label}/{split}" for sha, image, split in rows)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over class and content of every image, whatever the files are called."""
        return fingerprint(self.folder, self.cache)

    def split_document(self) -> dict[str, Any]:
        """Return what `split.json` holds: the split and the subject of every image."""
        subjects = self.subjects.ids if self.subjects else [None] * len(self.folder.images)
        return {
            "schema": "alexmri.split/1",
            "split_by": self.split.split_by,
            "groups_from": self.subjects.found_by if self.subjects else None,
            "compared_with": self.compared_with,
            "subjects_shared": self.subjects_shared,
            "subjects_between": self.subjects_between,
            "notes": list(self.split.notes),
            "images": [
                {"path": image.name, "label": image.label, "subject": subject, "split": split}
                for image, subject, split in zip(
                    self.folder.images, subjects, self.split.assigned, strict=True
                )
            ],
        }


def fingerprint(folder: Folder, cache: DecodedCache) -> str:
    """Return SHA-256 over class and content of every image, whatever the files are called."""
    rows = zip(folder.images, cache.sha256, strict=True)
    lines = sorted(f"{image.label}/{sha}" for image, sha in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def preprocessing_of(settings: Settings) -> Preprocessing:
    """Return how the images of a training become pixels."""
    return Preprocessing(center=settings.center, intensity=settings.intensity)


def load_dataset(
    channels: Mapping[str, Path],
    settings: Settings,
    *,
    workers: int,
    terminal: Terminal,
    fold: Fold | None = None,
    for_audit: bool = False,
) -> Dataset:
    """Find, decode, group and split the images of `channels` (split name -> folder).

    With `fold` the test split is that fold of all images, whatever split the folders have.
    `for_audit` also takes what no training would: any number of unreadable images, and images that
    cannot be split, which are then all of train.

    Raises:
        UserError: for anything wrong with the folders, the images, the groups or the split.
    """
    folder = discover_channels(channels)
    expected = settings.num_classes
    if expected is not None and expected != len(folder.classes):
        raise UserError(
            f"num_classes is {expected}, but {folder.root} has {len(folder.classes)} class"
            f" folders: {', '.join(folder.classes)}"
        )
    by_pixels = settings.groups == "inferred"
    groups = None
    if not by_pixels:
        groups = find_subjects(
            folder.images, folder.root, regex=settings.group_regex, csv_file=settings.groups_file
        )
    if settings.split_by == "subject" and not by_pixels:
        strays_may_stay = for_audit or (folder.is_split and fold is None)
        _require_subjects(folder, groups, strays_may_stay)
    synthetic = is_synthetic(folder)
    if synthetic and groups and groups.found_by == KAGGLE.title:
        groups = replace(groups, found_by=FOUND_BY_NAMES)
    decoded = partial(
        open_cache,
        image_size=settings.image_size,
        channels=settings.channels,
        workers=workers,
        terminal=terminal,
        bad_images="list" if for_audit else settings.on_bad_image,
    )
    cache = decoded(folder, preprocessing=preprocessing_of(settings))
    folder, groups = without(cache.skipped, folder, groups)
    if not folder.images:
        faults = [f"{name} {reason}" for name, reason in cache.skipped.items()]
        raise UserError(
            f"none of the images in {folder.root} can be read: {first_few(faults, '; ')}"
        )
    if by_pixels:
        # scipy, which serving and most trainings do without
        from alexmri.data.subjects_from_pixels import infer_subjects

        # Where a head lies, and its size, help to tell people apart.
        whole = decoded(folder, preprocessing=PREPROCESSING)
        images = number_of(len(folder.images), "image")
        with terminal.working(f"looking for the people on {images}"):
            inferred = infer_subjects(unit_vectors(whole.pixels_NCHW))
        groups = inferred.subjects(cache.sha256)
    try:
        if fold:
            folder, split = _divide_for_fold(folder, groups, cache, settings, fold)
        else:
            split = _divide(folder, groups, cache, settings)
        if settings.coverage is not None and not for_audit:
            split = _with_calibration(folder, groups, cache, split, settings)
    except UserError as error:
        if not for_audit:
            raise
        everything = ("train",) * len(folder.images)
        split = Split(everything, settings.split_by, (f"not split: {error}",))
    for name in ("train", "validation"):
        if not split.indices(name) and not for_audit:
            raise UserError(
                f"{folder.root} has too few images: none of its {len(folder.images)} is left for"
                f" {name}; add more"
            )
    return Dataset(folder, groups, cache, split, synthetic, _slicing(channels))


def _slicing(channels: Mapping[str, Path]) -> Slicing | None:
    """Return how `alexmri slices` has cut the images; UserError where folders differ in it."""
    found = {name: read_slicing(folder) for name, folder in channels.items()}
    first = next(iter(found.values()))
    if other := next((name for name, slicing in found.items() if slicing != first), None):
        raise UserError(
            f"the slices in {channels[next(iter(found))]} and {channels[other]} were not made in"
            " the same way (slices.json); make them anew with the same options of alexmri slices"
        )
    return first


def unknown_subjects(folder: Folder, subjects: Subjects | None) -> list[str]:
    """Name the images whose file names do not tell the subject as most others do."""
    images = len(folder.images)
    if subjects and subjects.strays:
        return [
            f"{len(subjects.strays)} of {images} file names do not fit the pattern of"
            f" {subjects.found_by}, so each of these images counts as a subject of its own:"
            f" {first_few(subjects.strays)}"
        ]
    misfit = None if subjects else _describe_misfits(folder)
    return [f"who is on which image is unknown, because {misfit}"] if misfit else []


def _describe_misfits(folder: Folder) -> str | None:
    title, names = misfits(folder.images) or ("", [])
    if not names:
        return None
    return (
        f"{len(names)} of {len(folder.images)} file names do not fit the pattern of {title}:"
        f" {first_few(names)}"
    )


def _require_subjects(folder: Folder, groups: Subjects | None, strays_may_stay: bool) -> None:
    """Refuse a split by subject where the subjects are unknown."""
    otherwise = (
        "pass group_regex, groups_file, or set groups to inferred (on the command line"
        " --group-regex, --groups-file or --groups inferred)"
    )
    if groups is None:
        misfit = _describe_misfits(folder) or f"for example {folder.images[0].name}"
        raise UserError(
            "split_by is subject, but the file names do not tell who is on an image"
            f" ({misfit}); {otherwise}"
        )
    if groups.strays and not strays_may_stay:
        raise UserError(
            f"split_by is subject, but {len(groups.strays)} of {len(folder.images)} file names do"
            f" not tell who is on the image: {first_few(groups.strays)}; rename or remove"
            f" them, set {option('split_by', 'slice')}, or {otherwise}"
        )


def without(
    skipped: Collection[str], folder: Folder, groups: Subjects | None
) -> tuple[Folder, Subjects | None]:
    """Return both without the images named in `skipped`, as if these had never been there."""
    kept = [i for i, image in enumerate(folder.images) if image.name not in skipped]
    if groups:
        groups = replace(
            groups,
            ids=tuple(groups.ids[i] for i in kept),
            strays=tuple(name for name in groups.strays if name not in skipped),
        )
    return replace(folder, images=tuple(folder.images[i] for i in kept)), groups


def _divide(
    folder: Folder, groups: Subjects | None, cache: DecodedCache, settings: Settings
) -> Split:
    labels = [image.label for image in folder.images]
    if folder.is_split:
        split = split_as_given(
            [image.split or "" for image in folder.images],
            groups.ids if groups else cache.sha256,
            labels,
            seed=settings.seed,
            split_by="subject" if groups else "slice",
        )
        if settings.split_by == "slice":
            return split
        note = "split_by is subject, but the data came split into folders, and that split is kept"
        return replace(split, notes=(*split.notes, note))
    by_subject = settings.split_by == "subject" and groups is not None
    return split_randomly(
        groups.ids if by_subject and groups else cache.sha256,
        labels,
        ratios=settings.split_ratios,
        seed=settings.seed,
        split_by=settings.split_by,
    )


def _with_calibration(
    folder: Folder, groups: Subjects | None, cache: DecodedCache, split: Split, settings: Settings
) -> Split:
    """Return the split with a calibration part; whole people stay together where they did before.

    Raises:
        UserError: too few people, or images where people are unknown, for this coverage.
    """
    needed = cases_needed(settings.coverage or 0)
    whole_people = groups is not None and (split.split_by == "subject" or folder.is_split)
    found = carve_calibration(
        split,
        groups.ids if groups and whole_people else cache.sha256,
        [image.label for image in folder.images],
        at_least=needed,
        seed=settings.seed,
        things="people" if whole_people else "images",
    )
    # Now, not after the training: each person is one case, however many images there are.
    people = {groups.ids[i] for i in found.indices(CALIBRATION)} if groups else None
    if people is not None and len(people) < needed:
        raise UserError(
            f"coverage {settings.coverage:g} needs {needed} or more people to calibrate on, and"
            f" half of validation shows {len(people)}; add data, or ask for less coverage"
        )
    return found


def _divide_for_fold(
    folder: Folder, groups: Subjects | None, cache: DecodedCache, settings: Settings, fold: Fold
) -> tuple[Folder, Split]:
    by_subject = settings.split_by == "subject" and groups is not None
    train, validation, _ = settings.split_ratios
    split = split_for_fold(
        groups.ids if by_subject and groups else cache.sha256,
        [image.label for image in folder.images],
        fold=fold,
        validation_share=validation / (train + validation),
        seed=settings.seed,
        split_by=settings.split_by,
    )
    if not folder.is_split:
        return folder, split
    note = "the data came split into folders; the folds are dealt from all of its images"
    return replace(folder, is_split=False), replace(split, notes=(*split.notes, note))
