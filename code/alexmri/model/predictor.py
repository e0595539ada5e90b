"""From images to calibrated probabilities: the network that answers requests, and what it says.

`Predictor` answers. `InferenceNetwork` is its network: batch norm is fused into the convolutions,
and bf16 is used where that is fast and agrees with the stored example.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from alexmri.contract.archive import model_folder
from alexmri.data.pixels import PixelRows, Pixels, decode
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet
from alexmri.model.bundle import Bundle, load_bundle
from alexmri.model.forward import BATCH, Compute, choose_compute, predict_logits, to_input
from alexmri.model.gradcam import gradcam, overlay_png
from alexmri.model.ood import DESCRIBING_BLOCKS

# How far a probability of the stored example may be off. Fusing in float32 rounds each weight once
# more: 8e-7 at most was measured over 544 slices. bf16 keeps 8 bits of every value: 0.008.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model says about N images: calibrated probabilities (N, K), and `ood_percentile_N`.

    The latter (N,) tells how unusual each image is, as a percentile of the validation slices, 0 to
    1 (see model/ood.py). It is None for a model without `ood.safetensors`.
    """

    probabilities_NK: NDArray[np.float64]
    ood_percentile_N: NDArray[np.float64] | None


class Predictor:
    """A model ready to answer: `predict` in the fastest precision proven, the rest in float32.

    Probabilities are calibrated: logits are divided by the temperature fitted on the validation
    split (Guo et al. 2017). They are lower than the plain softmax of an overconfident network.
    """

    def __init__(self, bundle: Bundle, compute: Compute | None = None) -> None:
        """Move the network to the device; UserError as by `choose_inference`."""
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
        """Decode one image to `uint8` (channels, size, size), as in training.

        Raises:
            UserError: it cannot be read, as by `decode`.
        """
        bundle = self.bundle
        return decode(
            source,
            image_size=bundle.image_size,
            channels=bundle.channels,
            preprocessing=bundle.preprocessing,
        )

    def logits(self, pixels_NCHW: PixelRows) -> NDArray[np.float32]:
        """Return the network's logits (N, K) of `uint8` images, before calibration."""
        return predict_logits(self._network, pixels_NCHW, self.compute)

    def probabilities(self, pixels_NCHW: PixelRows) -> NDArray[np.float64]:
        """Return calibrated probabilities (N, K) of `uint8` images."""
        return softmax(self.logits(pixels_NCHW), self.bundle.temperature)

    def predict(self, pixels_NCHW: Pixels) -> Prediction:
        """Return what a server answers about N `uint8` images, N >= 1; safe in several threads."""
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


class InferenceNetwork(nn.Module):
    """What `network` computes in evaluation mode, without batch norm and dropout.

    Convolution weights lie channels last, and all weights have the precision of `compute`. Linear
    layers share their memory with `network` where device and precision are the same.
    """

    def __init__(self, network: AlexNet, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        self.stages = nn.ModuleList(
            _fused(stage, compute) if isinstance(stage, nn.Sequential) else stage
            for stage in network.features
        )
        self.head = nn.Sequential(
            network.pool, *(_cast(layer, compute) for layer in network.classifier)
        )
        self.requires_grad_(False)

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N, K), and the channel means (N, F) of the first blocks, as float32."""
        values_NCHW = images_NCHW.to(self.compute.dtype, memory_format=torch.channels_last)
        means: list[Tensor] = []
        for stage in self.stages:
            values_NCHW = stage(values_NCHW)
            if isinstance(stage, nn.Sequential) and len(means) < DESCRIBING_BLOCKS:
                means.append(values_NCHW.mean(dim=(2, 3), dtype=torch.float32))
        return self.head(values_NCHW).float(), torch.cat(means, dim=1)

    @torch.inference_mode()
    def run(self, pixels_NCHW: PixelRows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (N, K) and features (N, F) of N `uint8` images, N >= 1, in batches."""
        logits, features = [], []
        for start in range(0, len(pixels_NCHW), BATCH):
            batch = torch.from_numpy(np.array(pixels_NCHW[start : start + BATCH]))
            logits_NK, features_NF = self(to_input(batch.to(self.compute.device)))
            logits.append(logits_NK.cpu().numpy())
            features.append(features_NF.cpu().numpy())
        return np.concatenate(logits), np.concatenate(features)


def choose_inference(bundle: Bundle, device: torch.device) -> InferenceNetwork:
    """Return the fastest network that agrees with the stored one about its golden example.

    It uses bf16 where `choose_compute` finds that fast, and float32 elsewhere. It agrees when every
    golden image gets the same label, and probabilities within TOLERANCE.

    Raises:
        UserError: not even the fused network in float32 agrees.
    """
    exact = Compute(device, "fp32")
    logits_NK = predict_logits(bundle.network, bundle.golden_NCHW, exact)
    expected_NK = softmax(logits_NK, bundle.temperature)
    for precision in dict.fromkeys((choose_compute("auto").precision, exact.precision)):
        network = InferenceNetwork(bundle.network, Compute(device, precision))
        given_NK = softmax(network.run(bundle.golden_NCHW)[0], bundle.temperature)
        same_labels = np.array_equal(given_NK.argmax(axis=1), expected_NK.argmax(axis=1))
        if same_labels and np.abs(given_NK - expected_NK).max() <= TOLERANCE[precision]:
            return network
    raise UserError(
        f"model {bundle.version} gives another answer to its stored example once its batch"
        " norm is fused into the convolutions; do not serve it on this machine"
    )


def _fused(block: nn.Sequential, compute: Compute) -> nn.Sequential:
    """Return a block of convolution, batch norm and ReLU as convolution and ReLU."""
    convolution, norm, relu = copy.deepcopy(block).eval()
    fused = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
    fused.to(compute.device, compute.dtype).to(memory_format=torch.channels_last)
    return nn.Sequential(fused, relu)


def _cast(layer: nn.Module, compute: Compute) -> nn.Module:
    """Return a layer of the head in the precision of `compute`, sharing weights where it can."""
    if isinstance(layer, nn.Dropout):
        return nn.Identity()
    if not isinstance(layer, nn.Linear):
        return layer
    with torch.device("meta"):
        cast = nn.Linear(layer.in_features, layer.out_features)
    cast.weight = nn.Parameter(layer.weight.detach().to(compute.device, compute.dtype), False)
    cast.bias = nn.Parameter(layer.bias.detach().to(compute.device, compute.dtype), False)
    return cast


def log_softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities (N, K) of logits divided by `temperature`, in double precision."""
    scaled = np.asarray(logits_NK, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return result


def softmax(logits_NK: npt.ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return probabilities (N, K) of logits divided by `temperature`, rows summing to 1."""
    return np.exp(log_softmax(logits_NK, temperature))


def subject_mean(probabilities_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probabilities (K,) of one subject: the mean over the subject's N slices."""
    mean: NDArray[np.float64] = probabilities_NK.mean(axis=0)
    return mean


def ranked(classes: Sequence[str], probabilities_K: NDArray[np.float64]) -> dict[str, float]:
    """Return class -> probability, the most likely first."""
    order = np.argsort(-probabilities_K, kind="stable")
    return {classes[i]: float(probabilities_K[i]) for i in order}
