"""From pictures to calibrated probabilities by a model directory: preprocess, forward, temper."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from alexmri.contract.archive import model_folder
from alexmri.data.pixels import Pixels, decode
from alexmri.model.bundle import Bundle, load_bundle
from alexmri.model.forward import Compute, choose_compute, predict_logits


def log_softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities (N, K) of logits divided by `temperature`, in double precision."""
    scaled = np.asarray(logits_NK, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return result


def softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities (N, K) of logits divided by `temperature`, rows summing to 1."""
    return np.exp(log_softmax(logits_NK, temperature))


class Predictor:
    """A model ready to answer.

    Probabilities are calibrated: logits are divided by the temperature fitted on the validation
    split (Guo et al. 2017), which is why they are lower than the plain softmax of an overconfident
    network.
    """

    def __init__(self, bundle: Bundle, compute: Compute | None = None) -> None:
        self.bundle = bundle
        self.compute = compute or choose_compute("fp32")
        self._network = bundle.network.to(self.compute.device)

    @classmethod
    def load(cls, source: Path) -> "Predictor":
        """Load a model directory or a packed one; UserError as by `model_folder`, `load_bundle`."""
        with model_folder(source) as folder:
            return cls(load_bundle(folder))

    def pixels(self, source: bytes | Path) -> Pixels:
        """Decode one picture to `uint8` (channels, size, size), as in training."""
        return decode(source, image_size=self.bundle.image_size, channels=self.bundle.channels)

    def probabilities(self, pixels_NCHW: Pixels) -> NDArray[np.float64]:
        """Return calibrated probabilities (N, K) of `uint8` images."""
        logits_NK = predict_logits(self._network, pixels_NCHW, self.compute)
        return softmax(logits_NK, self.bundle.temperature)


def subject_mean(probabilities_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the answer (K,) for one person: the mean over the person's slices."""
    mean: NDArray[np.float64] = probabilities_NK.mean(axis=0)
    return mean


def ranked(classes: Sequence[str], probabilities_K: NDArray[np.float64]) -> dict[str, float]:
    """Return class -> probability, the most likely first."""
    order = np.argsort(-probabilities_K, kind="stable")
    return {classes[i]: float(probabilities_K[i]) for i in order}
