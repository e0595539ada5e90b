"""Score the 1-NN baseline on images: what recognising people alone is worth."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alexmri.data.dataset import Dataset, Rows
from alexmri.data.nearest import nearest, unit_vectors
from alexmri.data.split import Split, compared_with, split_randomly
from alexmri.data.subjects import Subjects
from alexmri.errors import UserError
from alexmri.settings import Settings

# The probe compares every test image with every train image; larger sets are thinned evenly, to
# what takes seconds and 120 MB.
MAX_PROBED_IMAGES = 28_000


@dataclass(frozen=True, slots=True)
class LeakProbe:
    """Accuracy of the 1-NN baseline under three protocols.

    `slice` is this data set's own split, or one by slice; `subject` a split by subject; `shuffled`
    is `slice` with every subject given another one's label: what remains is recognising people.
    Where no image is in test, validation is measured. None where subjects are unknown or there is
    nothing to measure.
    """

    slice: float | None
    subject: float | None
    shuffled: float | None

    def document(self) -> dict[str, float | None]:
        return {"slice": self.slice, "subject": self.subject, "shuffled": self.shuffled}


def probe_leak(
    dataset: Dataset, settings: Settings, *, inferred: Subjects | None = None
) -> LeakProbe:
    """Score a 1-nearest-neighbour classifier by correlation of 32 x 32 pixels.

    `inferred` subjects count where the data set itself does not tell them.
    """
    rows_M = probed_rows(dataset)
    vectors_MD = unit_vectors(Rows(dataset.cache.pixels_NCHW, rows_M))
    labels_N = dataset.labels_N
    groups = dataset.subjects or inferred

    def score(labels_N: NDArray[np.int64], split: Split) -> float | None:
        assigned = [split.assigned[row] for row in rows_M.tolist()]
        return _score(vectors_MD, labels_N[rows_M], assigned, compared_with(split))

    labels = [image.label for image in dataset.folder.images]
    by_slice = (
        dataset.split
        if dataset.folder.is_split
        else _split_or_none(dataset.cache.sha256, labels, settings, "slice")
    )
    if by_slice is None:
        return LeakProbe(None, None, None)
    slice_score = score(labels_N, by_slice)
    if groups is None:
        return LeakProbe(slice_score, None, None)
    subjects = groups.ids
    shuffled_N = _shuffle_between_subjects(labels_N, subjects, settings.seed)
    shuffled_score = score(shuffled_N, by_slice)
    subjects_of_class: dict[str, set[str]] = defaultdict(set)
    for label, subject in zip(labels, subjects, strict=True):
        subjects_of_class[label].add(subject)
    by_subject = None
    if min(len(own) for own in subjects_of_class.values()) >= 2:
        by_subject = _split_or_none(subjects, labels, settings, "subject")
    subject_score = score(labels_N, by_subject) if by_subject else None
    return LeakProbe(slice_score, subject_score, shuffled_score)


def probed_rows(dataset: Dataset) -> NDArray[np.int64]:
    """Return the rows of the images that are compared: all, or an even sample."""
    images = len(dataset.folder.images)
    return np.arange(0, images, -(-images // MAX_PROBED_IMAGES))


def _split_or_none(
    keys: Sequence[str], labels: Sequence[str], settings: Settings, split_by: str
) -> Split | None:
    try:
        return split_randomly(
            keys,
            labels,
            ratios=settings.split_ratios,
            seed=settings.seed,
            split_by="subject" if split_by == "subject" else "slice",
        )
    except UserError:  # a class that is too small to be split
        return None


def _score(
    vectors_MD: NDArray[np.float32],
    labels_M: NDArray[np.int64],
    assigned: Sequence[str],
    measured: str | None,
) -> float | None:
    train = [i for i, split in enumerate(assigned) if split == "train"]
    held_out = [i for i, split in enumerate(assigned) if split == measured]
    if not train or not held_out:
        return None
    most_alike, _ = nearest(vectors_MD[held_out], vectors_MD[train])
    right = labels_M[train][most_alike] == labels_M[held_out]
    return float(right.mean())


def _shuffle_between_subjects(
    labels_N: NDArray[np.int64], subjects: tuple[str, ...], seed: int
) -> NDArray[np.int64]:
    """Give every subject the (most frequent) label of a random subject."""
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for label, subject in zip(labels_N.tolist(), subjects, strict=True):
        seen[subject][label] += 1
    order = sorted(seen)
    labels = [seen[subject].most_common(1)[0][0] for subject in order]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 1))))
    shuffled = dict(zip(order, generator.permutation(labels).tolist(), strict=True))
    return np.array([shuffled[subject] for subject in subjects], dtype=np.int64)
