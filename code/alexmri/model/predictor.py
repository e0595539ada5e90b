"""From pictures to calibrated probabilities by a model directory: preprocess, forward, temper."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from alexmri.contract.archive import model_folder
from alexmri.data.pixels import PixelRows, Pixels, decode
from alexmri.model.bundle import Bundle, load_bundle
from alexmri.model.forward import Compute, choose_compute, predict_logits
from alexmri.model.gradcam import gradcam, overlay_png
from alexmri.model.inference import choose_inference


def log_softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities (N, K) of logits divided by `temperature`, in double precision."""
    scaled = np.asarray(logits_NK, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return result


def softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities (N, K) of logits divided by `temperature`, rows summing to 1."""
    return np.exp(log_softmax(logits_NK, temperature))


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says about N images: calibrated probabilities (N, K), and `ood_percentile_N`.

    The latter (N,) tells how unusual each image is, as a percentile of the validation slices, 0 to
    1 (see model/ood.py). It is None for a model without `ood.safetensors`.
    """

    probabilities_NK: NDArray[np.float64]
    ood_percentile_N: NDArray[np.float64] | None


class Predictor:
    """A model ready to answer: `predict` in the fastest arithmetic proven, the rest in float32.

    Probabilities are calibrated: logits are divided by the temperature fitted on the validation
    split (Guo et al. 2017), which is why they are lower than the plain softmax of an overconfident
    network.
    """

    def __init__(self, bundle: Bundle, compute: Compute | None = None) -> None:
        self.bundle = bundle
        self.compute = compute or choose_compute("fp32")
        self._network = bundle.network.to(self.compute.device)
        self.inference = choose_inference(bundle, self.compute.device)

    @classmethod
    def load(cls, source: Path) -> "Predictor":
        """Load a model directory or a packed one; UserError as by `model_folder`, `load_bundle`."""
        with model_folder(source) as folder:
            return cls(load_bundle(folder))

    def pixels(self, source: bytes | Path) -> Pixels:
        """Decode one picture to `uint8` (channels, size, size), as in training."""
        return decode(source, image_size=self.bundle.image_size, channels=self.bundle.channels)

    def logits(self, pixels_NCHW: PixelRows) -> NDArray[np.float32]:
        """Return the network's scores (N, K) of `uint8` images, before calibration."""
        return predict_logits(self._network, pixels_NCHW, self.compute)

    def probabilities(self, pixels_NCHW: PixelRows) -> NDArray[np.float64]:
        """Return calibrated probabilities (N, K) of `uint8` images."""
        return softmax(self.logits(pixels_NCHW), self.bundle.temperature)

    def predict(self, pixels_NCHW: Pixels) -> Prediction:
        """Return what a server answers about `uint8` images; safe in several threads."""
        logits_NK, features_NF = self.inference.run(pixels_NCHW)
        ood = self.bundle.ood
        return Prediction(
            softmax(logits_NK, self.bundle.temperature),
            ood.score(features_NF) if ood else None,
        )

    def gradcam_png(self, pixels_CHW: Pixels, class_index: int) -> bytes:
        """Return a PNG of one image, coloured where the class was seen (see model/gradcam.py)."""
        heat_HW = gradcam(self._network, pixels_CHW, class_index, self.compute.device)
        return overlay_png(pixels_CHW, heat_HW)


def subject_mean(probabilities_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the answer (K,) for one person: the mean over the person's slices."""
    mean: NDArray[np.float64] = probabilities_NK.mean(axis=0)
    return mean


def ranked(classes: Sequence[str], probabilities_K: NDArray[np.float64]) -> dict[str, float]:
    """Return class -> probability, the most likely first."""
    order = np.argsort(-probabilities_K, kind="stable")
    return {classes[i]: float(probabilities_K[i]) for i in order}
