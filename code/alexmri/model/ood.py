"""Out of distribution: how unusual an image is, as a percentile of the validation slices, 0 to 1.

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
# Blocks of the network whose channel means describe a picture.
DESCRIBING_BLOCKS = 3
DIRECTIONS = 32
# Slices looked at in each split: 500 to 3,872 told foreign pictures equally well from slices of
# unseen people, and a stopped run has little time to write its model.
MOST_SLICES = 1000


@dataclass(frozen=True, slots=True, eq=False)
class OutOfDistribution:
    """What training slices look like (mean, directions, spread), and validation's distances."""

    mean_F: Vector
    directions_DF: Vector
    variance_D: Vector
    rest: Vector
    distances_V: Vector

    def score(self, features_NF: Vector) -> NDArray[np.float64]:
        """Return for each picture the share (N,) of validation slices that are less unusual."""
        distances_N = self._distances(features_NF)
        below_N = np.searchsorted(self.distances_V, distances_N, side="left")
        result: NDArray[np.float64] = below_N / len(self.distances_V)
        return result

    def _distances(self, features_NF: Vector) -> Vector:
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
        """Read what `save` wrote; UserError where it is something else."""
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
                return f"{name} holds values that are no finite numbers"
        if not V:
            return "distances_V is empty"
        if (np.diff(self.distances_V) < 0).any():
            return "distances_V is not sorted"
        if not (self.variance_D > 0).all() or self.rest[0] <= 0:
            return "it holds variances that are not positive"
        return None


_NAMES = tuple(OutOfDistribution.__dataclass_fields__)


def fit_ood(train_NF: Vector, validation_NF: Vector) -> OutOfDistribution:
    """Fit on features of training slices, calibrate on those of validation slices, one at least."""
    from_mean_NF = train_NF.astype(np.float64) - train_NF.mean(axis=0, dtype=np.float64)
    covariance_FF = from_mean_NF.T @ from_mean_NF / len(train_NF)
    values, vectors = np.linalg.eigh(covariance_FF)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    count = min(DIRECTIONS, len(train_NF) - 1)
    # Never nothing, or all that varies by a rounding error would be infinitely far away.
    rest = max(float(values[count:].mean()), 1e-6 * float(values.mean()), 1e-12)
    fitted = OutOfDistribution(
        mean_F=train_NF.mean(axis=0, dtype=np.float64).astype(np.float32),
        directions_DF=np.ascontiguousarray(vectors[:, :count].T, dtype=np.float32),
        variance_D=(values[:count] + rest).astype(np.float32),
        rest=np.array([rest], dtype=np.float32),
        distances_V=np.zeros(0, dtype=np.float32),
    )
    distances_V = np.sort(fitted._distances(validation_NF))
    return OutOfDistribution(
        **{name: getattr(fitted, name) for name in _NAMES if name != "distances_V"},
        distances_V=distances_V,
    )


def sample_rows(count: int) -> NDArray[np.int64]:
    """Return at most MOST_SLICES row numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_SLICES)).astype(np.int64))
