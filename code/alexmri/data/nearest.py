"""Compare images by the correlation of their 32 x 32 pixels, and find those that are alike.

What grey values mean in MRI, up to gain and offset, a correlation does not care about. All work is
blocked matrix products in float32: n against m images cost n x m x 2,048 operations.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexmri.data.pixels import PixelRows

SIDE = 32
# Rows of one block: with 28,000 references a block of correlations has 57 MB.
BLOCK = 512
# `pairs_above` compares so many dimensions first, where there are clearly more, and takes the axes
# from so many vectors.
COARSE, COARSE_SAMPLE = 96, 4096

Vectors = NDArray[np.float32]
Indices = NDArray[np.int64]


def small_grays(pixels_NCHW: PixelRows) -> Vectors:
    """Return images of any size as (N, 32, 32): colours averaged, other sizes box-filtered."""
    grays_NHW = np.empty((len(pixels_NCHW), SIDE, SIDE), dtype=np.float32)
    for start in range(0, len(grays_NHW), BLOCK):
        block = pixels_NCHW[start : start + BLOCK].mean(axis=1, dtype=np.float32)
        if block.shape[1:] != (SIDE, SIDE):
            block = np.stack([_reduced(gray_HW) for gray_HW in block])
        grays_NHW[start : start + BLOCK] = block
    return grays_NHW


def unit_vectors(pixels_NCHW: PixelRows) -> Vectors:
    """Return images of any size as vectors (N, 1024) with mean 0 and length 1.

    An image of one gray value becomes the zero vector, which is like nothing.
    """
    return normalised(small_grays(pixels_NCHW).reshape(len(pixels_NCHW), -1))


def normalised(vectors: Vectors) -> Vectors:
    """Return `vectors` (N, D), changed in place, with mean 0 and length 1; flat ones become 0."""
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def nearest(query_MD: Vectors, reference_ND: Vectors) -> tuple[Indices, Vectors]:
    """Return for each query the row of the most alike reference, and their correlation.

    Both are of `unit_vectors`; there is at least one reference. Of equals the first wins.
    """
    index_M = np.empty(len(query_MD), dtype=np.int64)
    correlation_M = np.empty(len(query_MD), dtype=np.float32)
    reference_DN = reference_ND.T
    for start in range(0, len(query_MD), BLOCK):
        block = query_MD[start : start + BLOCK] @ reference_DN
        rows = slice(start, start + len(block))
        index_M[rows] = block.argmax(axis=1)
        correlation_M[rows] = block[np.arange(len(block)), index_M[rows]]
    return index_M, correlation_M


def pairs_above(
    query_ND: Vectors, reference_ND: Vectors, min_product: float, *, queries: Indices | None = None
) -> tuple[Indices, Indices, Vectors]:
    """Return the pairs i < j with query_i . reference_j >= `min_product`, and these products.

    Both have N vectors no longer than 1, and the product of i and j is that of j and i. With
    `queries`, only pairs of which one is among these rows. A query is given its best 32 at most:
    of 10,000 images that are all alike 50 million pairs would tell no more.

    The products are first bounded from above: on the main axes of the vectors they are computed,
    in what is left they are at most the product of the lengths. No pair is lost by that.
    """
    if not len(query_ND):
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, np.empty(0, dtype=np.float32)
    coarse_query, coarse_reference = _coarse(query_ND, reference_ND)
    rows = np.arange(len(query_ND)) if queries is None else queries
    found: list[tuple[Indices, Indices, Vectors]] = []
    for chunk in _chunks(rows):
        first = int(chunk[0]) if queries is None else 0
        bound = coarse_query[chunk] @ coarse_reference[first:].T
        at, j = np.nonzero(bound >= min_product)
        i, j = chunk[at], j + first
        keep = i < j if queries is None else i != j
        i, j = i[keep], j[keep]
        if coarse_query is query_ND:
            product = bound[at[keep], j - first]
        else:
            product = np.einsum("pd,pd->p", query_ND[i], reference_ND[j])
            i, j, product = (part[product >= min_product] for part in (i, j, product))
        found.append(_best(i, j, product))
    i, j, product = (np.concatenate(parts) for parts in zip(*found, strict=True))
    low, high = np.minimum(i, j), np.maximum(i, j)
    _, once = np.unique(low * len(query_ND) + high, return_index=True)
    return low[once], high[once], product[once]


def _chunks(rows: Indices) -> Iterator[Indices]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _coarse(query_ND: Vectors, reference_ND: Vectors) -> tuple[Vectors, Vectors]:
    """Return both on fewer axes, with the length of what is left of each as one more."""
    if query_ND.shape[1] <= 4 * COARSE or len(query_ND) < COARSE_SAMPLE:
        return query_ND, reference_ND
    sample = reference_ND[:: max(1, len(reference_ND) // COARSE_SAMPLE)]
    axes_DK = np.linalg.eigh(sample.T @ sample)[1][:, -COARSE:].astype(np.float32)

    def reduced(vectors: Vectors) -> Vectors:
        main = vectors @ axes_DK
        squares = (vectors**2).sum(axis=1) - (main**2).sum(axis=1)
        # Rounding must not make the bound too small.
        left = np.sqrt(np.maximum(squares, 0) + 1e-5)
        return np.concatenate([main, left[:, None]], axis=1, dtype=np.float32)

    return reduced(query_ND), reduced(reference_ND)


def _best(
    i: Indices, j: Indices, product: Vectors, max_pairs: int = 32
) -> tuple[Indices, Indices, Vectors]:
    """Return the `max_pairs` best pairs of each i."""
    order = np.lexsort((-product, i))
    i, j, product = i[order], j[order], product[order]
    rank = np.arange(len(i)) - np.searchsorted(i, i)
    return i[rank < max_pairs], j[rank < max_pairs], product[rank < max_pairs]


def _reduced(gray_HW: Vectors) -> Vectors:
    image = Image.fromarray(gray_HW).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)
