"""Learn what training slices look like, to find images that are unusual (see model/ood.py)."""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from alexmri.data.dataset import Dataset
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.model.ood import OutOfDistribution, Vector
from alexmri.model.predictor import InferenceNetwork

DIRECTIONS = 32
# Of each split. 500 to 3,872 slices told foreign images equally well from slices of unseen
# subjects, and more slices take more time.
MAX_SLICES = 1000


def fit_ood_to_dataset(
    network: AlexNet, device: torch.device, dataset: Dataset
) -> OutOfDistribution:
    """Fit on training slices and calibrate on validation slices, at most MAX_SLICES of each.

    `network` is on `device`. It describes the slices in float32 and stays as it is.
    """
    describing = InferenceNetwork(network, Compute(device, "fp32"))
    features = []
    for split in ("train", "validation"):
        part = dataset.part(split)
        features.append(describing.run(part.pixels_NCHW[sample_rows(len(part))])[1])
    return fit_ood(*features)


def fit_ood(train_NF: Vector, validation_VF: Vector) -> OutOfDistribution:
    """Fit on float32 features (N, F) of training slices, calibrate on those of validation slices.

    One slice of each is enough, though a few say little.
    """
    # PCA needs two rows. A row that stands there twice has the same mean.
    train_NF = np.resize(train_NF, (max(2, len(train_NF)), train_NF.shape[1])).astype(np.float64)
    with np.errstate(invalid="ignore"):  # equal slices explain 0 of 0
        pca = PCA(min(DIRECTIONS, len(train_NF) - 1), svd_solver="covariance_eigh").fit(train_NF)
    # Never 0, or a rounding error would be infinitely far away.
    usual = float(train_NF.var(axis=0, ddof=1).mean())
    rest = max(float(pca.noise_variance_), 1e-6 * usual, 1e-12)
    fitted = OutOfDistribution(
        mean_F=pca.mean_.astype(np.float32),
        directions_DF=pca.components_.astype(np.float32),
        variance_D=np.maximum(pca.explained_variance_, rest).astype(np.float32),
        rest=np.array([rest], dtype=np.float32),
        distances_V=np.zeros(0, dtype=np.float32),
    )
    return dataclasses.replace(fitted, distances_V=np.sort(fitted.distances(validation_VF)))


def sample_rows(count: int) -> NDArray[np.int64]:
    """Return at most MAX_SLICES row numbers below `count`, evenly spaced and ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_SLICES)).astype(np.int64))
