"""Look at a data set before training: counts, copies, shared people, and what a look-up scores."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexmri.data.dataset import Dataset, Rows
from alexmri.data.decode import shortened
from alexmri.data.nearest import nearest, unit_vectors
from alexmri.data.split import Split, split_randomly
from alexmri.settings import Settings

# The probe compares every test image with every train image; larger sets are thinned evenly, to
# what takes seconds and 120 MB.
LARGEST_PROBE = 28_000
NAMED_COPIES = 20


@dataclass(frozen=True, slots=True)
class LeakProbe:
    """Accuracy of a look-up of the most similar training image, under three protocols.

    `slice` is this data set's own split, or one by slice; `subject` a split by person; `shuffled`
    is `slice` with every person given another person's label: what remains is recognising people.
    None where people are unknown or there is nothing to test on.
    """

    slice: float | None
    subject: float | None
    shuffled: float | None

    def document(self) -> dict[str, float | None]:
        return {"slice": self.slice, "subject": self.subject, "shuffled": self.shuffled}


def probe_leak(dataset: Dataset, settings: Settings) -> LeakProbe:
    """Score a 1-nearest-neighbour look-up by correlation of 32 x 32 pixels."""
    rows_M = _probed_rows(dataset)
    vectors_MD = unit_vectors(Rows(dataset.store.pixels_NCHW, rows_M))
    labels_N = dataset.labels_N

    def look_up(labels_N: NDArray[np.int64], split: Split) -> float | None:
        assigned = [split.assigned[row] for row in rows_M.tolist()]
        return _look_up(vectors_MD, labels_N[rows_M], assigned)

    labels = [image.label for image in dataset.folder.images]
    by_slice = (
        dataset.split
        if dataset.folder.is_split
        else split_randomly(
            dataset.store.sha256,
            labels,
            ratios=settings.split_ratios,
            seed=settings.seed,
            split_by="slice",
        )
    )
    slice_score = look_up(labels_N, by_slice)
    if dataset.groups is None:
        return LeakProbe(slice_score, None, None)
    subjects = dataset.groups.subjects
    shuffled_N = _shuffle_between_people(labels_N, subjects, settings.seed)
    shuffled_score = look_up(shuffled_N, by_slice)
    people_of_class: dict[str, set[str]] = defaultdict(set)
    for label, subject in zip(labels, subjects, strict=True):
        people_of_class[label].add(subject)
    if min(len(people) for people in people_of_class.values()) < 2:
        return LeakProbe(slice_score, None, shuffled_score)
    by_subject = split_randomly(
        subjects, labels, ratios=settings.split_ratios, seed=settings.seed, split_by="subject"
    )
    return LeakProbe(slice_score, look_up(labels_N, by_subject), shuffled_score)


def exact_copies(dataset: Dataset) -> list[dict[str, Any]]:
    """Return groups of files with equal bytes, with the classes and splits they stand in."""
    same: dict[str, list[int]] = defaultdict(list)
    for i, sha in enumerate(dataset.store.sha256):
        same[sha].append(i)
    images, assigned = dataset.folder.images, dataset.split.assigned
    return [
        {
            "paths": [images[i].name for i in rows],
            "classes": sorted({images[i].label for i in rows}),
            "splits": sorted({assigned[i] for i in rows}),
        }
        for rows in same.values()
        if len(rows) > 1
    ]


def audit_document(dataset: Dataset, probe: LeakProbe) -> dict[str, Any]:
    """Return what `audit.json` holds."""
    copies = exact_copies(dataset)
    return {
        "schema": "alexmri.audit/1",
        "images": len(dataset.folder.images),
        "ignored_files": dataset.folder.ignored_files,
        "skipped_images": dict(dataset.store.skipped),
        "counts": dataset.counts(),
        "fingerprint": dataset.fingerprint,
        "subjects": dataset.groups.count if dataset.groups else None,
        "groups_from": dataset.groups.found_by if dataset.groups else None,
        "split_by": dataset.split.split_by,
        "subjects_shared": dataset.subjects_shared,
        "exact_duplicates": copies,
        "leak_probe": probe.document(),
        "warnings": warnings_of(dataset),
    }


def warnings_of(dataset: Dataset) -> list[str]:
    """Return what a person should know about the data before believing a number."""
    notes = list(dataset.split.notes)
    skipped = [f"{name} {reason}" for name, reason in dataset.store.skipped.items()]
    if skipped:
        whole = len(dataset.folder.images)
        notes.append(
            f"{len(skipped)} of {whole + len(skipped)} images are left out, because on_bad_image is"
            f" skip: {shortened(skipped)}"
        )
    copies = exact_copies(dataset)
    for title, key in (("classes", "classes"), ("splits", "splits")):
        crossing = [copy for copy in copies if len(copy[key]) > 1]
        if crossing:
            first = " = ".join(crossing[0]["paths"][:3])
            notes.append(f"{len(crossing)} images have exact copies across {title}: {first}")
    if dataset.store.enlarged:
        notes.append(
            f"{len(dataset.store.enlarged)} images are smaller than the network's input and were"
            f" enlarged, the first being {dataset.store.enlarged[0]}"
        )
    images, probed = len(dataset.folder.images), len(_probed_rows(dataset))
    if probed < images:
        notes.append(f"the most similar slices were looked for among {probed} of {images} images")
    for split, counts in dataset.counts().items():
        missing = [name for name, count in counts.items() if not count]
        if any(counts.values()) and missing:
            notes.append(f"no {split} image of class {', '.join(missing)}")
    return notes


def _probed_rows(dataset: Dataset) -> NDArray[np.int64]:
    images = len(dataset.folder.images)
    return np.arange(0, images, -(-images // LARGEST_PROBE))


def _look_up(
    vectors_MD: NDArray[np.float32], labels_M: NDArray[np.int64], assigned: Sequence[str]
) -> float | None:
    train = [i for i, split in enumerate(assigned) if split == "train"]
    test = [i for i, split in enumerate(assigned) if split == "test"]
    if not train or not test:
        return None
    most_alike, _ = nearest(vectors_MD[test], vectors_MD[train])
    right = labels_M[train][most_alike] == labels_M[test]
    return float(right.mean())


def _shuffle_between_people(
    labels_N: NDArray[np.int64], subjects: tuple[str, ...], seed: int
) -> NDArray[np.int64]:
    """Give every person the (most frequent) label of a random person."""
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for label, subject in zip(labels_N.tolist(), subjects, strict=True):
        seen[subject][label] += 1
    people = sorted(seen)
    labels = [seen[person].most_common(1)[0][0] for person in people]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 1))))
    shuffled = dict(zip(people, generator.permutation(labels).tolist(), strict=True))
    return np.array([shuffled[subject] for subject in subjects], dtype=np.int64)
