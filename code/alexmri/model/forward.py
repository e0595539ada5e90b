"""Run a network over `uint8` images: device, precision, normalisation, forward pass.

Mean, standard deviation and precision are known here and nowhere else.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexmri.data.pixels import PixelRows
from alexmri.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH = 256
# Of pixel values scaled to 0..1. They map black to -1 and white to 1.
MEAN, STD = 0.5, 0.5


@dataclass(frozen=True, slots=True)
class Compute:
    """On which device and in which precision a network runs."""

    device: torch.device
    precision: Precision

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def autocast(self) -> torch.autocast:
        """Return the context in which a forward pass uses this precision."""
        reduced = self.precision != "fp32"
        return torch.autocast(
            self.device.type, dtype=self.dtype if reduced else None, enabled=reduced
        )


def choose_compute(precision: Literal["auto", "fp32", "bf16", "fp16"]) -> Compute:
    """Return the GPU if there is one, else the CPU, with the precision asked for.

    `auto` is bf16 where the hardware multiplies it: GPUs from Ampere on, CPUs with AVX512-BF16
    (which those with AMX have too), where a training step takes 0.6 of its time in fp32 (measured
    on an AMD EPYC of the Zen 4 kind, see docs/benchmarks.md). Else it is fp32.

    Raises:
        UserError: fp16 on a CPU.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda")
        fast_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    else:
        device = torch.device("cpu")
        fast_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        if precision == "fp16":
            raise UserError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
    if precision == "auto":
        return Compute(device, "bf16" if fast_bf16 else "fp32")
    return Compute(device, precision)


def to_input(pixels_NCHW: Tensor) -> Tensor:
    """Return `uint8` pixels (N, C, H, W), 0..255, as float32 images (value / 255 - MEAN) / STD.

    The result has the same shape and device, and values from -1 to 1.
    """
    return pixels_NCHW.float().div_(255 * STD).sub_(MEAN / STD)


@torch.inference_mode()
def predict_logits(
    network: nn.Module, pixels_NCHW: PixelRows, compute: Compute
) -> NDArray[np.float32]:
    """Return logits (N, K) of N `uint8` images by the network in evaluation mode.

    The network must be on the device of `compute`. It goes back to its mode afterwards.
    """
    was_training = network.training
    network.eval()
    logits: list[Tensor] = []
    for start in range(0, len(pixels_NCHW) or 1, BATCH):
        batch = torch.from_numpy(np.array(pixels_NCHW[start : start + BATCH]))
        with compute.autocast():
            logits.append(network(to_input(batch.to(compute.device))).float())
    network.train(was_training)
    result: NDArray[np.float32] = torch.cat(logits).cpu().numpy()
    return result
