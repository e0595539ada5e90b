"""What two baselines without any learning answer."""

import numpy as np

from alexmri.data.nearest import nearest, unit_vectors
from alexmri.data.pixels import PixelRows
from alexmri.evaluation.predictions import Ints, Predictions

# Training images that are compared with, as in the audit: larger sets are thinned evenly.
MAX_REFERENCE = 28_000


def one_nearest_neighbour(
    pixels_NCHW: PixelRows, reference_NCHW: PixelRows, reference_labels: Ints
) -> Ints:
    """Return the label (N,) of the reference image most like each image.

    Alike is the correlation of 32 x 32 pixels: a 1-nearest-neighbour classifier (Cover and Hart
    1967) that knows nothing of what a disease looks like. `reference_NCHW` are training images.
    """
    every = -(-len(reference_labels) // MAX_REFERENCE)
    rows_M = np.arange(0, len(reference_labels), every)
    reference_MD = unit_vectors(reference_NCHW[rows_M])
    index_N, _ = nearest(unit_vectors(pixels_NCHW), reference_MD)
    return reference_labels[rows_M][index_N]


def answers_of_baselines(predictions: Predictions, majority: int) -> dict[str, Ints]:
    """Return the answers (N,) of each baseline by name.

    "majority" always answers the class that is commonest in this very split, so no constant answer
    is right more often; "nearest_neighbour", where known, gives the label of the most similar
    training image.
    """
    answers = {"majority": np.full_like(predictions.labels_N, majority)}
    if predictions.nearest_N is not None:
        answers["nearest_neighbour"] = predictions.nearest_N
    return answers
