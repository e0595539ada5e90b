"""The network as it answers requests: batch norm folded into convolutions, in proven arithmetic."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexmri.data.pixels import PixelRows
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet
from alexmri.model.bundle import Bundle
from alexmri.model.forward import BATCH, Compute, choose_compute, predict_logits, to_input
from alexmri.model.ood import DESCRIBING_BLOCKS

# How far a probability of the stored example may be off. Folding in float32 rounds each weight once
# more: 8e-7 at most was measured over 544 slices. bf16 keeps 8 bits of every value: 0.008.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.02}


class InferenceNetwork(nn.Module):
    """What `network` computes in evaluation mode, without batch norm and dropout.

    There batch norm is a factor and an offset per channel, which a convolution takes into its own
    weights (Jacob et al. 2018, section 3.2). Weights lie channels last and in the arithmetic of
    `compute`; linear layers in float32 are shared with `network`.
    """

    def __init__(self, network: AlexNet, compute: Compute) -> None:
        super().__init__()
        self.compute = compute
        stages = [
            _folded(stage, compute) if isinstance(stage, nn.Sequential) else stage
            for stage in network.features
        ]
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(
            network.pool, *(_cast(layer, compute) for layer in network.classifier)
        )
        self.eval().requires_grad_(False)

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
        """Return logits (N, K) and features (N, F) of `uint8` images, in batches."""
        logits, features = [], []
        for start in range(0, len(pixels_NCHW), BATCH):
            batch = torch.from_numpy(np.array(pixels_NCHW[start : start + BATCH]))
            logits_NK, features_NF = self(to_input(batch.to(self.compute.device)))
            logits.append(logits_NK.cpu().numpy())
            features.append(features_NF.cpu().numpy())
        return np.concatenate(logits), np.concatenate(features)


def choose_inference(bundle: Bundle, device: torch.device) -> InferenceNetwork:
    """Return the fastest network that agrees with the stored one about its golden example.

    That is bf16 where `choose_compute` finds it fast, and float32 else. To agree is to give every
    golden picture the same label and probabilities within TOLERANCE.

    Raises:
        UserError: not even folding in float32 agrees.
    """
    exact = Compute(device, "fp32")
    expected_NK = predict_logits(bundle.network, bundle.golden_NCHW, exact)
    for precision in dict.fromkeys((choose_compute("auto").precision, exact.precision)):
        network = InferenceNetwork(bundle.network, Compute(device, precision))
        logits_NK, _ = network.run(bundle.golden_NCHW)
        if _agree(logits_NK, expected_NK, bundle.temperature, TOLERANCE[precision]):
            return network
    raise UserError(
        f"model {bundle.version} answers its stored example otherwise once its batch norm is folded"
        " into the convolutions; do not serve it on this machine"
    )


def _agree(
    logits_NK: NDArray[np.float32],
    expected_NK: NDArray[np.float32],
    temperature: float,
    tolerance: float,
) -> bool:
    given, wanted = (
        torch.softmax(torch.from_numpy(each).double() / temperature, dim=1)
        for each in (logits_NK, expected_NK)
    )
    same_labels = torch.equal(given.argmax(dim=1), wanted.argmax(dim=1))
    return same_labels and bool((given - wanted).abs().max() <= tolerance)


def _folded(block: nn.Sequential, compute: Compute) -> nn.Sequential:
    """Return a block of convolution, batch norm and ReLU as convolution and ReLU."""
    convolution, norm = block[0], block[1]
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - what AlexNet's blocks are made of
    assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101
    # In double precision, so that a weight is rounded once.
    factor_C = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = convolution.weight.double() * factor_C[:, None, None, None]
    bias_C = norm.bias.double() - norm.running_mean.double() * factor_C
    with torch.device("meta"):
        folded = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size[0],
            convolution.stride[0],
            convolution.padding[0],
        )
    weight = weight.to(compute.device, compute.dtype, memory_format=torch.channels_last)
    folded.weight = nn.Parameter(weight, requires_grad=False)
    folded.bias = nn.Parameter(bias_C.to(compute.device, compute.dtype), requires_grad=False)
    return nn.Sequential(folded, nn.ReLU(inplace=True))


def _cast(layer: nn.Module, compute: Compute) -> nn.Module:
    """Return a layer of the head in the arithmetic of `compute`, sharing weights where it can."""
    if isinstance(layer, nn.Dropout):
        return nn.Identity()
    if not isinstance(layer, nn.Linear):
        return layer
    with torch.device("meta"):
        cast = nn.Linear(layer.in_features, layer.out_features)
    cast.weight = nn.Parameter(layer.weight.detach().to(compute.device, compute.dtype), False)
    cast.bias = nn.Parameter(layer.bias.detach().to(compute.device, compute.dtype), False)
    return cast
