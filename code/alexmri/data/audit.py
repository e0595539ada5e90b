"""Look at a data set before training: counts, copies, shared subjects, and a 1-NN baseline."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexmri.data.audit_probe import probe_leak, probed_rows
from alexmri.data.audit_report import describe_findings, verdict
from alexmri.data.audit_subjects import misfiled, near_pairs
from alexmri.data.dataset import Dataset
from alexmri.data.decode import read_image
from alexmri.data.duplicates import Copy, Size, find_copies
from alexmri.data.nearest import Indices, Vectors, normalised, small_grays
from alexmri.data.split import subjects_between, subjects_shared
from alexmri.data.subjects_from_pixels import Inferred, infer_subjects
from alexmri.errors import UserError
from alexmri.settings import Settings
from alexmri.terminal import first_few, number_of

# Look-alikes that are written down one by one; the rest is counted.
LISTED = 1000
# An image whose gray values deviate by less than this has no contrast, and is like nothing.
FLAT = 2.0


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found, for `audit.json`, the terminal and the page, and where the images lie."""

    document: Mapping[str, Any]
    paths: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing all images with one another found, however they are split.

    Attributes:
        exact: rows of images with equal pixels, group by group, those with equal bytes included.
        flat: rows of images without contrast.
        rows: all but those and repeated copies; `vectors_MD` are their pixels, normalised.
        copies: images that are others again, rotated, flipped or with other intensities.
        inferred: who is on the images, by their pixels.
    """

    exact: Sequence[Sequence[int]]
    flat: Collection[int]
    rows: Indices
    vectors_MD: Vectors
    copies: Sequence[Copy]
    inferred: Inferred

    @property
    def repeats(self) -> set[int]:
        """All images but the first of each group of exact copies."""
        return {row for rows in self.exact for row in rows[1:]}


def compare_images(dataset: Dataset) -> Comparison:
    """Compare all images with one another; reads some of the files again.

    Raises:
        UserError: no image has any contrast.
    """
    images, cache = dataset.folder.images, dataset.cache
    grays_NHW = small_grays(cache.pixels_NCHW)
    exact = _exact(dataset)
    repeats = {row for rows in exact for row in rows[1:]}
    flat = set(np.flatnonzero(grays_NHW.std(axis=(1, 2)) < FLAT).tolist())
    if len(flat) == len(images):
        raise UserError(
            f"none of the {len(images)} images has any contrast, the first being {images[0].name};"
            " look at the files: an empty first page, full transparency or pixels of 0 and 1 look"
            " like this"
        )
    rows = np.array([i for i in range(len(images)) if i not in repeats | flat], dtype=np.int64)

    copies = find_copies(grays_NHW, [image.path for image in images], cache.sizes, rows)
    vectors_ND = normalised(grays_NHW.reshape(len(images), -1))
    return Comparison(exact, flat, rows, vectors_ND[rows], copies, infer_subjects(vectors_ND))


def audit(dataset: Dataset, settings: Settings, compared: Comparison | None = None) -> Audit:
    """Look for everything that docs/data.md lists.

    `compared` is what `compare_images` returned for the same images, perhaps split otherwise.

    Raises:
        UserError: as `compare_images`.
    """
    compared = compared or compare_images(dataset)
    images, inferred, flat = dataset.folder.images, compared.inferred, compared.flat
    from_pixels = inferred.subjects(dataset.cache.sha256) if inferred.believed else None
    people = dataset.subjects or from_pixels
    copied = {image for copy in compared.copies for image in (copy.first, copy.second)}
    near, counts = _near(dataset, compared.vectors_MD, compared.rows, compared.copies)
    probe = probe_leak(dataset, settings, inferred=from_pixels)
    strays = misfiled(images, dataset.subjects, inferred, compared.repeats | copied)

    document = {
        "synthetic": dataset.synthetic,
        "images": len(images),
        "ignored_files": dataset.folder.ignored_files,
        "skipped_images": dict(dataset.cache.skipped),
        "counts": dataset.counts(),
        "fingerprint": dataset.fingerprint,
        "split_by": dataset.split.split_by,
        "compared_with": dataset.compared_with,
        "leak_probe": probe.document(),
        "sizes": _sizes(dataset, dataset.cache.sizes),
        "exact_duplicates": sorted(
            (_described(dataset, rows, _kind(dataset, rows)) for rows in compared.exact),
            key=lambda group: list(group["paths"]),
        ),
        "near_duplicates": near,
        "near_duplicate_counts": counts,
        "misfiled": strays,
        "subjects": people.count if people else None,
        "groups_from": people.found_by if people else None,
        "inferred_subjects": {
            "subjects": int(inferred.subject_N.max()) + 1,
            "confidence": round(inferred.confidence, 4),
            "believed": inferred.believed,
        },
        "groups_believed": people.believed if people else None,
        "subjects_shared": subjects_shared(dataset.split, people.ids) if people else None,
        "subjects_between": subjects_between(dataset.split, people.ids) if people else None,
    }
    skips = settings.on_bad_image == "skip"
    notes = _notes(dataset, left_out=skips)
    blank = []
    if flat:
        first = images[min(flat)].name
        blank = [f"images without contrast: {len(flat)} of {len(images)}, the first being {first}"]
    notes += blank
    document["warnings"] = [*notes, *describe_findings(document)]
    said = [f"{note[0].upper()}{note[1:]}." for note in (*_several_pages(dataset), *blank)]
    sentences = [*verdict(document), *said]
    document = {"schema": "alexmri.audit/1", "verdict": sentences, **document}
    return Audit(document, {image.name: image.path for image in images})


def _notes(dataset: Dataset, *, left_out: bool) -> list[str]:
    """Return what a person should know about the data before believing a number.

    `left_out`: whether images that are left out are among that.
    """
    notes = dataset.notes
    if dataset.subjects and not dataset.subjects.believed:
        notes.append(
            f"people are told apart by {dataset.subjects.found_by}: slices of one person"
            " probably count as several people, on both sides of the split"
        )
    skipped = [f"{name} {reason}" for name, reason in dataset.cache.skipped.items()]
    if skipped and left_out:
        whole = len(dataset.folder.images)
        notes.append(
            f"left out because on_bad_image is skip: {len(skipped)} of"
            f" {number_of(whole + len(skipped), 'image')}: {first_few(skipped, '; ')}"
        )
    if dataset.cache.enlarged:
        notes.append(
            f"enlarged, because smaller than the network's input:"
            f" {number_of(len(dataset.cache.enlarged), 'image')}, the first being"
            f" {dataset.cache.enlarged[0]}"
        )
    notes += _several_pages(dataset)
    images, probed = len(dataset.folder.images), len(probed_rows(dataset))
    if probed < images:
        notes.append(f"the most similar slices were looked for among {probed} of {images} images")
    for split, counts in dataset.counts().items():
        missing = [name for name, count in counts.items() if not count]
        if any(counts.values()) and missing:
            notes.append(f"no {split} image of class {', '.join(missing)}")
    return notes


def _several_pages(dataset: Dataset) -> list[str]:
    frames = dataset.cache.frames
    if not frames:
        return []
    name, count = next(iter(frames.items()))
    return [
        "files that hold several pages or frames, of which only the first is used:"
        f" {len(frames)}, the first being {name} with {count} pages"
    ]


def _near(
    dataset: Dataset, vectors_MD: Any, rows: Indices, copies: Sequence[Copy]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the near duplicates that need a look, and how many others there are.

    Neighbouring slices of one person are near duplicates too: those are counted only.
    """
    subjects = dataset.subjects.ids if dataset.subjects else None
    known = [subjects[row] for row in rows] if subjects else None
    threshold, i, j, alike = near_pairs(vectors_MD, known)
    images, assigned = dataset.folder.images, dataset.split.assigned
    listed: list[dict[str, Any]] = [
        _described(dataset, (copy.first, copy.second), "copy")
        | {"how": copy.how, "correlation": round(copy.correlation, 4)}
        for copy in copies
    ]
    known_pairs = {(copy.first, copy.second) for copy in copies}
    counts = Counter({"pairs": len(i)})
    suspects: list[dict[str, Any]] = []
    for first, second, correlation in sorted(
        zip(rows[i].tolist(), rows[j].tolist(), alike.tolist(), strict=True),
        key=lambda pair: (-pair[2], pair[:2]),
    ):
        other_class = images[first].label != images[second].label
        other_person = subjects is not None and subjects[first] != subjects[second]
        counts["across_classes"] += other_class
        counts["across_subjects"] += other_person
        counts["across_splits"] += assigned[first] != assigned[second]
        if (other_class or other_person) and (first, second) not in known_pairs:
            counts["suspicious"] += 1
            if len(suspects) < LISTED:
                suspects.append(
                    _described(dataset, (first, second), "look-alike")
                    | {"how": "nearly the same", "correlation": round(correlation, 4)}
                )
    names = ("pairs", "across_classes", "across_subjects", "across_splits", "suspicious")
    shown = {name: counts[name] for name in names}
    if subjects is None:
        shown["across_subjects"] = None  # type: ignore[assignment]
    listed.sort(key=lambda pair: (-len(pair["classes"]), -len(pair["splits"])))
    return listed + suspects, {"threshold": round(threshold, 4), **shown}


def _described(dataset: Dataset, rows: Sequence[int], kind: str) -> dict[str, Any]:
    images, assigned = dataset.folder.images, dataset.split.assigned
    return {
        "paths": [images[i].name for i in rows],
        "kind": kind,
        "classes": sorted({images[i].label for i in rows}),
        "splits": sorted({assigned[i] for i in rows}),
        "subjects": sorted({dataset.subjects.ids[i] for i in rows}) if dataset.subjects else None,
    }


def _kind(dataset: Dataset, rows: Sequence[int]) -> str:
    """Return what the exact copies `rows` have in common, bytes or only pixels."""
    return "bytes" if len({dataset.cache.sha256[i] for i in rows}) == 1 else "pixels"


def _exact(dataset: Dataset) -> list[list[int]]:
    """Return groups of rows whose files have equal bytes or equal pixels."""
    pixels, sha256 = dataset.cache.pixels_NCHW, dataset.cache.sha256
    small: dict[bytes, list[int]] = defaultdict(list)
    for i in range(len(pixels)):
        small[hashlib.blake2b(pixels[i].tobytes(), digest_size=16).digest()].append(i)
    groups: list[list[int]] = []
    for candidates in small.values():
        whole = len({sha256[i] for i in candidates}) > 1  # else their bytes tell all
        by_content: dict[str, list[int]] = defaultdict(list)
        for i in candidates:
            by_content[_content(dataset, i) if whole else sha256[i]].append(i)
        groups += [rows for rows in by_content.values() if len(rows) > 1]
    return groups


def _content(dataset: Dataset, row: int) -> str:
    """Return a digest of the pixels of a file at its full size."""
    found = read_image(dataset.folder.images[row].path)
    if isinstance(found, str):
        return dataset.cache.sha256[row]
    image = found[1].convert("RGB")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _sizes(dataset: Dataset, sizes: Sequence[Size]) -> dict[str, dict[str, int]]:
    """Return class -> size -> number of images, the most frequent first."""
    found: dict[str, Counter[str]] = {label: Counter() for label in dataset.classes}
    for image, (width, height) in zip(dataset.folder.images, sizes, strict=True):
        found[image.label][f"{width} x {height}"] += 1
    return {label: dict(counts.most_common()) for label, counts in found.items()}
