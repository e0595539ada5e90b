"""Compare pictures by the correlation of their 32 x 32 pixels, and find each one's most alike.

What grey values mean in MRI, up to gain and offset, a correlation does not care about. All work is
blocked matrix products in float32: n against m pictures cost n x m x 2,048 operations.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alexmri.data.pixels import PixelRows

SIDE = 32
# Rows of one block: with 28,000 references a block of correlations has 57 MB.
BLOCK = 512

Vectors = NDArray[np.float32]


def unit_vectors(pixels_NCHW: PixelRows) -> Vectors:
    """Return pictures of any size as vectors (N, 1024) with mean 0 and length 1.

    Colours are averaged and other sizes than 32 x 32 box-filtered. A picture of one grey level
    becomes the zero vector, which is like nothing.
    """
    vectors = np.empty((len(pixels_NCHW), SIDE * SIDE), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = pixels_NCHW[start : start + BLOCK].mean(axis=1, dtype=np.float32)
        if block.shape[1:] != (SIDE, SIDE):
            block = np.stack([_reduced(gray_HW) for gray_HW in block])
        vectors[start : start + BLOCK] = block.reshape(len(block), -1)
    return normalised(vectors)


def normalised(vectors: Vectors) -> Vectors:
    """Return `vectors` (N, D), changed in place, with mean 0 and length 1; flat ones become 0."""
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors


def nearest(query_MD: Vectors, reference_ND: Vectors) -> tuple[NDArray[np.int64], Vectors]:
    """Return for each query the row of the most alike reference, and their correlation.

    Both are of `unit_vectors`; there is at least one reference. Of equals the first wins.
    """
    index_M = np.empty(len(query_MD), dtype=np.int64)
    correlation_M = np.empty(len(query_MD), dtype=np.float32)
    for start, block in correlations(query_MD, reference_ND):
        rows = slice(start, start + len(block))
        index_M[rows] = block.argmax(axis=1)
        correlation_M[rows] = block[np.arange(len(block)), index_M[rows]]
    return index_M, correlation_M


def correlations(query_MD: Vectors, reference_ND: Vectors) -> Iterator[tuple[int, Vectors]]:
    """Yield the correlations of queries with all references, block by block with its first row."""
    reference_DN = reference_ND.T
    for start in range(0, len(query_MD), BLOCK):
        yield start, query_MD[start : start + BLOCK] @ reference_DN


def _reduced(gray_HW: Vectors) -> Vectors:
    picture = Image.fromarray(gray_HW).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float32)
