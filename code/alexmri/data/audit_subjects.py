"""Compare who is said to be on the images with what their pixels say."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from alexmri.data.folders import ImageFile
from alexmri.data.nearest import Indices, Vectors, pairs_above
from alexmri.data.subjects import Subjects
from alexmri.data.subjects_from_pixels import Inferred

# Measured on the public set: the best match of a slice in another person is at most 0.985, that in
# the same person at least 0.991.
THRESHOLD = 0.988
MIN_THRESHOLD, MAX_THRESHOLD = 0.98, 0.9995


def near_pairs(
    vectors_ND: Vectors, subjects: Sequence[str] | None
) -> tuple[float, Indices, Indices, Vectors]:
    """Return the threshold of nearness, and the pairs of images above it with their correlation.

    Where people are known and slices of one are clearly more alike than those of two, the threshold
    is halfway between; else it is THRESHOLD.
    """
    i, j, alike = pairs_above(vectors_ND, vectors_ND, MIN_THRESHOLD)
    threshold = THRESHOLD
    if subjects is not None:
        _, number_N = np.unique(np.array(subjects), return_inverse=True)
        same = number_N[i] == number_N[j]
        own, other = np.zeros(len(vectors_ND)), np.full(len(vectors_ND), MIN_THRESHOLD)
        for rows in (i, j):
            np.maximum.at(own, rows[same], alike[same])
            np.maximum.at(other, rows[~same], alike[~same])
        # One image in a hundred may be misfiled or alone without moving the threshold.
        min_own, max_other = float(np.quantile(own, 0.01)), float(np.quantile(other, 0.99))
        if min_own > max_other:
            threshold = min((min_own + max_other) / 2, MAX_THRESHOLD)
    keep = alike >= threshold
    return threshold, i[keep], j[keep], alike[keep]


def misfiled(
    images: Sequence[ImageFile],
    groups: Subjects | None,
    inferred: Inferred,
    copies: Collection[int],
) -> list[dict[str, Any]]:
    """Return subjects whose slices stand in several classes or under several names.

    Names tell of the first; pixels of both, where a chain of neighbouring slices runs through and
    chains are believed.
    `copies` are images that are known to be copies of others: those tell nothing of their own.
    """
    labels = [image.label for image in images]
    findings: list[dict[str, Any]] = []
    if groups:
        by_name: dict[str, list[int]] = defaultdict(list)
        for i, subject in enumerate(groups.ids):
            by_name[subject].append(i)
        findings += [
            _finding(images, rows, labels, subject, "names")
            for subject, rows in sorted(by_name.items())
            if len({labels[i] for i in rows}) > 1
        ]
    chains: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(inferred.subject_N.tolist()):
        if inferred.believed and i not in copies:
            chains[number].append(i)
    told = {path for finding in findings for path in finding["paths"]}
    for rows in chains.values():
        homes = [f"{labels[i]}/{groups.ids[i]}" if groups else labels[i] for i in rows]
        if len(set(homes)) < 2:
            continue
        home = Counter(homes).most_common(1)[0][0]
        known = groups.ids[rows[homes.index(home)]] if groups else None
        finding = _finding(images, rows, homes, known, "pixels")
        if not told.issuperset(finding["paths"]):
            findings.append(finding)
    return findings


def _finding(
    images: Sequence[ImageFile],
    rows: Sequence[int],
    homes: Sequence[str],
    subject: str | None,
    told_by: str,
) -> dict[str, Any]:
    """Describe one person's images; `paths` are those outside the place where most of them are.

    `homes` are of all images or of `rows`.
    """
    own = list(homes) if len(homes) == len(rows) else [homes[i] for i in rows]
    home = Counter(own).most_common(1)[0][0]
    strays = [i for i, place in zip(rows, own, strict=True) if place != home]
    others = [i for i, place in zip(rows, own, strict=True) if place == home]
    return {
        "subject": subject,
        "paths": [images[i].name for i in strays],
        "belong_to": [images[i].name for i in others],
        "classes": dict(sorted(Counter(images[i].label for i in rows).items())),
        "told_by": told_by,
    }
