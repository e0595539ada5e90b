"""Out of distribution: how unusual an image is, as a percentile of the validation slices, 0 to 1.

`training/ood_fit.py` fits it, and this module computes the score with numpy alone.

An image is described by the channel means of the network's first blocks. Training slices vary along
a few directions of that space. The distance of an image counts steps along these directions in
units of their spread, and the rest in units of the usual rest. This is a probabilistic PCA (Tipping
and Bishop 1999); Lee et al. (2018) use such distances to find foreign inputs. The score is the
share of validation slices whose distance is smaller: 0.5 is an ordinary slice, and 1 is farther off
than all. Above 0.99, distrust the answer. A low score does not say that the answer is right.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from alexmri.errors import UserError

Vector = NDArray[np.float32]
# Blocks of the network whose channel means describe an image: its features.
DESCRIBING_BLOCKS = 3


@dataclass(frozen=True, slots=True, eq=False)
class OutOfDistribution:
    """What training slices look like to the network, and the distances of validation slices.

    All are float32, of F features, D directions and V validation slices; variances are in squared
    units of the features.
    """

    mean_F: Vector
    directions_DF: Vector
    """Orthonormal rows."""
    variance_D: Vector
    """Along the directions."""
    rest: Vector
    """Shape (1,): the variance along each other direction."""
    distances_V: Vector
    """Ascending, without unit."""

    def score(self, features_NF: Vector) -> NDArray[np.float64]:
        """Return for each image the share (N,), 0 to 1, of validation slices that are closer."""
        below_N = np.searchsorted(self.distances_V, self.distances(features_NF), side="left")
        result: NDArray[np.float64] = below_N / len(self.distances_V)
        return result

    def distances(self, features_NF: Vector) -> Vector:
        """Return the squared Mahalanobis distance (N,) of each image from the mean, no unit."""
        from_mean_NF = features_NF.astype(np.float64) - self.mean_F
        along_ND = from_mean_NF @ self.directions_DF.T.astype(np.float64)
        beside_N = (from_mean_NF**2).sum(axis=1) - (along_ND**2).sum(axis=1)
        squares_N = (along_ND**2 / self.variance_D).sum(axis=1) + beside_N / self.rest[0]
        result: Vector = squares_N.astype(np.float32)
        return result

    def save(self, path: Path) -> None:
        """Write as safetensors; the same values give the same bytes."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _NAMES}, path)

    @classmethod
    def load(cls, path: Path) -> "OutOfDistribution":
        """Read what `save` wrote.

        Raises:
            UserError: the file cannot be read, or its arrays contradict each other.
        """
        try:
            tensors = load_file(path)
            found = cls(**{name: tensors[name] for name in _NAMES})
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if fault := found._fault():
            raise UserError(f"{path} is damaged: {fault}; copy the model again")
        return found

    def _fault(self) -> str | None:
        """Say what of the arrays contradicts the others, or None."""
        F, D, V = self.mean_F.size, self.variance_D.size, self.distances_V.size
        shapes = {"mean_F": (F,), "directions_DF": (D, F), "variance_D": (D,), "rest": (1,)}
        for name, shape in {**shapes, "distances_V": (V,)}.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                return f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(shape)}"
            if not np.isfinite(array).all():
                return f"{name} holds values that are not finite numbers"
        if not V:
            return "distances_V is empty"
        if (np.diff(self.distances_V) < 0).any():
            return "distances_V is not sorted"
        if not (self.variance_D > 0).all() or self.rest[0] <= 0:
            return "it holds variances that are not positive"
        return None


_NAMES = tuple(OutOfDistribution.__dataclass_fields__)
