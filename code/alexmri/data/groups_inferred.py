"""Tell from pixels alone which images show the same person: chains of neighbouring slices.

Neighbouring slices of a person differ by less than two people at the same height. Plain correlation
at 32 x 32 hardly shows it, because what all brains have in common weighs most. So the pictures are
whitened by their own principal axes: what is common then weighs no more than what is personal. On
the 160 people of the public set that lifts the gap between a person's neighbouring slices and the
best match in anybody else from 0.991 against 0.985 to 0.83 against 0.45. Labels are not looked at,
so that a person who stands in two classes can be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alexmri.data.groups import Groups
from alexmri.data.nearest import Rows, Vectors, pairs_above

FEWEST = 16
# Axes kept, at most and per image, and from how many images they are taken at most.
MOST_AXES, AXES_PER_IMAGE, AXES_SAMPLE = 200, 0.25, 8000
# Slices are linked from here on. On the public set, and on parts of it (5 to 160 people, every
# second slice), other people reach 0.27 to 0.45; slices next to each other have 0.83 or more, with
# one left out between them 0.47 or more.
LINK = 0.5
# Chains that gaps have torn are joined where each is the other's best, alike at least so much, and
# more by so much than to any third chain (other people reached 0.095 more in thinned sets).
JOIN, JOIN_MARGIN = 0.3, 0.1
# Below this share of images with an unrivalled place, inferred people are not believed.
BELIEVED = 0.9


@dataclass(frozen=True, slots=True)
class Inferred:
    """A number for the person in each image, and the share of images whose place is beyond doubt.

    In doubt is an image alone in its chain, and one almost as much like another chain as its own.
    """

    person_N: Rows
    confidence: float

    @property
    def believed(self) -> bool:
        return self.confidence >= BELIEVED

    def groups(self, sha256: Sequence[str]) -> Groups:
        """Return them named by the contents of their images, whatever order the files come in."""
        names: dict[int, str] = {}
        for person, digest in zip(self.person_N.tolist(), sha256, strict=True):
            names[person] = min(names.get(person, digest), digest)
        return Groups(
            tuple(f"inferred-{names[person][:12]}" for person in self.person_N.tolist()),
            f"pixels, inferred with confidence {self.confidence:.2f}",
        )


def infer_people(vectors_ND: Vectors) -> Inferred:
    """Return who is in each image, told by `unit_vectors` of their pixels."""
    images = len(vectors_ND)
    if images < FEWEST:
        return Inferred(np.arange(images), 0.0)
    white_NK = _whitened(vectors_ND)
    i, j, alike = pairs_above(white_NK, white_NK, JOIN)
    person_N = _connected(i[alike >= LINK], j[alike >= LINK], images)
    while True:
        joined_N = _join(person_N, i, j, alike)
        if joined_N.max() == person_N.max():
            return Inferred(person_N, _confidence(person_N, i, j, alike))
        person_N = joined_N


def _whitened(vectors_ND: Vectors) -> Vectors:
    """Return the vectors on their main axes, each axis scaled to variance 1, with length 1."""
    centred = vectors_ND - vectors_ND.mean(axis=0)
    sample = centred[:: max(1, len(centred) // AXES_SAMPLE)]
    variances, axes = np.linalg.eigh(sample.T @ sample / len(sample))
    kept = min(MOST_AXES, int(len(centred) * AXES_PER_IMAGE))
    scales = np.sqrt(np.maximum(variances[-kept:], 1e-9))
    white: Vectors = (centred @ (axes[:, -kept:] / scales)).astype(np.float32)
    white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-6)
    return white


def _connected(i: Rows, j: Rows, nodes: int) -> Rows:
    links = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(nodes, nodes))
    numbers: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return numbers.astype(np.int64)


def _join(person_N: Rows, i: Rows, j: Rows, alike: Vectors) -> Rows:
    """Join pairs of chains that are each other's best match by a margin."""
    chains = int(person_N.max()) + 1
    a, b = person_N[i], person_N[j]
    a, b, alike = _strongest(a[a != b], b[a != b], alike[a != b], chains)
    first, best, second = _rivals(a, b, alike, chains)
    candidates = np.flatnonzero(best >= JOIN)
    other = first[candidates]
    clear = (best - second)[candidates] >= JOIN_MARGIN
    mutual = (first[other] == candidates) & ((best - second)[other] >= JOIN_MARGIN)
    chosen = candidates[clear & mutual]
    return _connected(chosen, first[chosen], chains)[person_N]


def _strongest(a: Rows, b: Rows, alike: Vectors, chains: int) -> tuple[Rows, Rows, Vectors]:
    """Return each pair of chains once in both directions, with its greatest likeness."""
    a, b, alike = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([alike, alike])
    order = np.lexsort((-alike, a * chains + b))
    a, b, alike = a[order], b[order], alike[order]
    _, once = np.unique(a * chains + b, return_index=True)
    return a[once], b[once], alike[once]


def _rivals(
    a: Rows, b: Rows, alike: Vectors, nodes: int
) -> tuple[Rows, NDArray[np.float64], NDArray[np.float64]]:
    """Return for each a its best b (-1 for none), how alike it is, and how alike the next is.

    What was not compared, being less alike than JOIN, counts as just that alike.
    """
    order = np.lexsort((-alike, a))
    a, b, alike = a[order], b[order], alike[order]
    rank = np.arange(len(a)) - np.searchsorted(a, a)
    first = np.full(nodes, -1, dtype=np.int64)
    best, second = np.zeros(nodes), np.full(nodes, JOIN)
    first[a[rank == 0]], best[a[rank == 0]] = b[rank == 0], alike[rank == 0]
    second[a[rank == 1]] = alike[rank == 1]
    return first, best, second


def _confidence(person_N: Rows, i: Rows, j: Rows, alike: Vectors) -> float:
    own, other = np.zeros(len(person_N)), np.full(len(person_N), JOIN)
    same = person_N[i] == person_N[j]
    for rows in (i, j):
        np.maximum.at(own, rows[same], alike[same])
        np.maximum.at(other, rows[~same], alike[~same])
    return float((own - other >= JOIN_MARGIN).mean())
