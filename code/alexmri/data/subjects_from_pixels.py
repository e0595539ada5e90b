"""Tell from pixels alone which images show the same person: chains of neighbouring slices.

Neighbouring slices of a person differ by less than two people at the same position. Plain
correlation at 32 x 32 hardly shows it, because what all brains have in common weighs most. So the
images are whitened by their own principal axes: what is common then weighs no more than what is
personal. On the 160 people of the public set that lifts the gap between a person's neighbouring
slices and the best match in anybody else from 0.991 against 0.985 to 0.83 against 0.45. Two chains
that run side by side through the same positions of the head are two people, however alike some
slices are; two that do not meet may be one person with slices missing between. Labels are not
looked at, so that a person who stands in two classes can be found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from alexmri.data.nearest import Indices, Vectors, pairs_above
from alexmri.data.slice_position import Positions, slice_positions
from alexmri.data.subjects import Subjects

MIN_IMAGES = 16
# Axes kept, at most and per image, and from how many images they are taken at most.
MAX_AXES, AXES_PER_IMAGE, AXES_SAMPLE = 200, 0.25, 8000
# Slices are linked from here on. On the public set, and on parts of it (5 to 160 people, every
# second slice), other people reach 0.27 to 0.45; slices next to each other have 0.83 or more, with
# one left out between them 0.47 or more.
LINK = 0.5
# Chains that gaps have torn are joined where each is the other's best, alike at least so much, and
# more by so much than to any third chain (other people reached 0.095 more in thinned sets).
JOIN, JOIN_MARGIN = 0.3, 0.1
# Of few images the few axes are alike by chance: links must reach this share of what the most alike
# of so many random directions would (measured on 2 to 10 people; nothing changes from 12 on).
CHANCE = 0.6
# Chains that have more than this share of the shorter one's positions in common are two people's.
# Positions are uncertain by the second number (5 of 32 slices), so short chains are never refused.
SIDE_BY_SIDE, BLUR = 0.4, 0.15
# Below this share of images with an unrivalled place, inferred people are not believed.
BELIEVED = 0.9


@dataclass(frozen=True, slots=True)
class Inferred:
    """A number for the subject on each image, and the share of images whose place is beyond doubt.

    In doubt is an image alone in its chain, and one almost as much like another chain as its own.
    Another image counts by the share of all others that cannot be the rest of its person, because
    their chains reach the same positions as its own.
    """

    subject_N: Indices
    confidence: float

    @property
    def believed(self) -> bool:
        return self.confidence >= BELIEVED

    def subjects(self, sha256: Sequence[str]) -> Subjects:
        """Return them named by the contents of their images, whatever order the files come in."""
        names: dict[int, str] = {}
        for number, digest in zip(self.subject_N.tolist(), sha256, strict=True):
            names[number] = min(names.get(number, digest), digest)
        doubt = "" if self.believed else ", too little to rely on"
        return Subjects(
            tuple(f"inferred-{names[number][:12]}" for number in self.subject_N.tolist()),
            f"pixels, inferred with confidence {self.confidence:.2f}{doubt}",
            believed=self.believed,
        )


def infer_subjects(vectors_ND: Vectors) -> Inferred:
    """Return who is in each image, told by `unit_vectors` of their pixels."""
    images = len(vectors_ND)
    if images < MIN_IMAGES:
        return Inferred(np.arange(images), 0.0)
    white_NK = _whitened(vectors_ND)
    i, j, alike = pairs_above(white_NK, white_NK, JOIN)
    position_N = slice_positions(vectors_ND, i, j)
    links = alike >= _min_link(*white_NK.shape)
    subject_N = _linked(i[links], j[links], alike[links], position_N)
    while True:
        joined_N = _join(subject_N, i, j, alike, position_N)
        if joined_N.max() == subject_N.max():
            return Inferred(subject_N, _confidence(subject_N, i, j, alike, position_N))
        subject_N = joined_N


def _min_link(images: int, axes: int) -> float:
    """Return from where on images are linked: on few axes some of many are alike by chance."""
    by_chance = float(np.sqrt(2 * np.log(images**2 / 2) / axes))
    return max(LINK, CHANCE * by_chance)


def _linked(i: Indices, j: Indices, alike: Vectors, position_N: Positions) -> Indices:
    """Return chains: the strongest link first, none between two that run side by side."""
    chain_N = list(range(len(position_N)))
    members = [[image] for image in chain_N]
    low, high = position_N.tolist(), position_N.tolist()
    order = np.argsort(-alike, kind="stable")
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        a, b = chain_N[a], chain_N[b]
        if a == b or _side_by_side(low[a], high[a], low[b], high[b]):
            continue
        if len(members[a]) < len(members[b]):
            a, b = b, a
        low[a], high[a] = min(low[a], low[b]), max(high[a], high[b])
        for image in members[b]:
            chain_N[image] = a
        members[a] += members[b]
    return np.unique(chain_N, return_inverse=True)[1]


def _side_by_side(low_a: Any, high_a: Any, low_b: Any, high_b: Any) -> Any:
    """Whether chains share so much of their positions that they are two people's."""
    shared = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    shorter = np.minimum(high_a - low_a, high_b - low_b)
    return shared > np.maximum(BLUR, SIDE_BY_SIDE * shorter)


def _whitened(vectors_ND: Vectors) -> Vectors:
    """Return the vectors on their main axes, each axis scaled to variance 1, with length 1."""
    centred = vectors_ND - vectors_ND.mean(axis=0)
    sample = centred[:: max(1, len(centred) // AXES_SAMPLE)]
    variances, axes = np.linalg.eigh(sample.T @ sample / len(sample))
    kept = min(MAX_AXES, int(len(centred) * AXES_PER_IMAGE))
    scales = np.sqrt(np.maximum(variances[-kept:], 1e-9))
    white: Vectors = (centred @ (axes[:, -kept:] / scales)).astype(np.float32)
    white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-6)
    return white


def _connected(i: Indices, j: Indices, nodes: int) -> Indices:
    links = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(nodes, nodes))
    numbers: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return numbers.astype(np.int64)


def _join(
    subject_N: Indices, i: Indices, j: Indices, alike: Vectors, position_N: Positions
) -> Indices:
    """Join pairs of chains that are each other's best match by a margin."""
    chains = int(subject_N.max()) + 1
    a, b = subject_N[i], subject_N[j]
    a, b, alike = _strongest(a[a != b], b[a != b], alike[a != b], chains)
    low, high = _reach(subject_N, position_N)
    apart = ~_side_by_side(low[a], high[a], low[b], high[b])
    a, b, alike = a[apart], b[apart], alike[apart]
    first, best, second = _rivals(a, b, alike, chains)
    candidates = np.flatnonzero(best >= JOIN)
    other = first[candidates]
    clear = (best - second)[candidates] >= JOIN_MARGIN
    mutual = (first[other] == candidates) & ((best - second)[other] >= JOIN_MARGIN)
    chosen = candidates[clear & mutual]
    return _connected(chosen, first[chosen], chains)[subject_N]


def _reach(subject_N: Indices, position_N: Positions) -> tuple[Positions, Positions]:
    """Return the lowest and the highest place of every chain."""
    chains = int(subject_N.max()) + 1
    low, high = np.ones(chains), np.zeros(chains)
    np.minimum.at(low, subject_N, position_N)
    np.maximum.at(high, subject_N, position_N)
    return low, high


def _strongest(
    a: Indices, b: Indices, alike: Vectors, chains: int
) -> tuple[Indices, Indices, Vectors]:
    """Return each pair of chains once in both directions, with its greatest likeness."""
    a, b, alike = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([alike, alike])
    order = np.lexsort((-alike, a * chains + b))
    a, b, alike = a[order], b[order], alike[order]
    _, once = np.unique(a * chains + b, return_index=True)
    return a[once], b[once], alike[once]


def _rivals(
    a: Indices, b: Indices, alike: Vectors, nodes: int
) -> tuple[Indices, NDArray[np.float64], NDArray[np.float64]]:
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


def _confidence(
    subject_N: Indices, i: Indices, j: Indices, alike: Vectors, position_N: Positions
) -> float:
    own, other = np.zeros(len(subject_N)), np.full(len(subject_N), JOIN)
    same = subject_N[i] == subject_N[j]
    for rows in (i, j):
        np.maximum.at(own, rows[same], alike[same])
        np.maximum.at(other, rows[~same], alike[~same])
    clear = own - other >= JOIN_MARGIN
    return float((clear * _whole(subject_N, position_N)[subject_N]).mean())


def _whole(subject_N: Indices, position_N: Positions) -> Positions:
    """Return for each chain the share of other images that cannot be the rest of its person.

    They are on chains that reach positions where this chain is as well.
    """
    low, high = _reach(subject_N, position_N)
    size = np.bincount(subject_N)
    images = size.sum()
    by_high, by_low = np.argsort(high), np.argsort(-low)
    upto = np.concatenate([[0], np.cumsum(size[by_high])])
    downto = np.concatenate([[0], np.cumsum(size[by_low])])
    below = upto[np.searchsorted(high[by_high], low, side="left")]
    above = downto[np.searchsorted(-low[by_low], -high, side="left")]
    others = images - size
    whole: Positions = (others - below - above) / np.maximum(others, 1)
    return whole
