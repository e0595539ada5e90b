"""Write a model as ONNX, for runtimes without PyTorch, after proving that it answers the same.

The file takes what `data.pixels.decode` gives, `pixels`: uint8 (N, channels, size, size) with any
N, and holds the rest: normalisation, network, temperature. It gives `logits` and the calibrated
`probabilities`, both float32 (N, K). Its metadata has `classes`, a JSON list in the order of K, and
`preprocessing`, the name of what made the pixels.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alexmri.data.pixels import PREPROCESSING, Pixels, Preprocessing
from alexmri.errors import UserError
from alexmri.files import appearing
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits, to_input

# Of December 2022.
OPSET = 18
OUTPUTS = ("logits", "probabilities")
BATCHES = (1, 3, 64)
# Relative to the largest logit; 5e-7 was measured over 640 slices.
TOLERANCE = 1e-4
CPU = Compute(torch.device("cpu"), "fp32")


def require_onnx() -> None:
    """Raise UserError where the packages for the export are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the ONNX export needs the package {error.name}, which is not installed:"
            " pip install onnx onnxscript onnxruntime"
        ) from None


def export_onnx(
    path: Path,
    network: AlexNet,
    *,
    classes: Sequence[str],
    temperature: float,
    pixels_NCHW: Pixels,
    preprocessing: Preprocessing = PREPROCESSING,
) -> None:
    """Write `network` to `path`; the file appears once it agrees with PyTorch about `pixels_NCHW`.

    `network` is on the CPU in evaluation mode; `pixels_NCHW` (N, channels, size, size) are `uint8`
    images as it takes them, N >= 1. Both are asked in batches of 1, 3 and 64 images, repeated where
    there are fewer. `preprocessing` is how they were made, for those who use the file.

    Raises:
        UserError: a package is not installed, or onnxruntime and PyTorch disagree.
    """
    require_onnx()
    batches = [np.resize(pixels_NCHW, (size, *pixels_NCHW.shape[1:])) for size in BATCHES]
    expected = [predict_logits(network, batch_NCHW, CPU) for batch_NCHW in batches]
    program = torch.onnx.export(
        _Calibrated(network, temperature).eval(),
        (torch.from_numpy(batches[1]),),
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=OUTPUTS,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    assert program is not None  # noqa: S101 - without `f` there always is one
    program.model.metadata_props.update(
        classes=json.dumps(list(classes)),
        preprocessing=preprocessing.name,
        center=preprocessing.center,
        intensity=preprocessing.intensity,
    )
    for node in program.model.graph:
        # The exporter notes the lines of Python behind each node, with the paths of this machine.
        node.metadata_props.clear()
    with appearing(path) as temporary:
        program.save(temporary, external_data=False)
        _check(temporary, batches, expected, temperature)


class _Calibrated(nn.Module):
    """From `uint8` pixels (N, C, S, S) to logits and calibrated probabilities, both (N, K)."""

    def __init__(self, network: AlexNet, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, pixels_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits_NK: Tensor = self.network(to_input(pixels_NCHW))
        return logits_NK, torch.softmax(logits_NK / self.temperature, dim=1)


def _check(
    path: Path, batches: list[Pixels], expected: list[NDArray[np.float32]], temperature: float
) -> None:
    """Raise UserError where onnxruntime gives other logits (N, K) or probabilities than torch."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch_NCHW, logits_NK in zip(batches, expected, strict=True):
        tempered_NK = torch.from_numpy(logits_NK).double() / temperature
        wanted = (logits_NK, torch.softmax(tempered_NK, dim=1).numpy())
        given = session.run(OUTPUTS, {"pixels": batch_NCHW})
        for name, given_NK, wanted_NK in zip(OUTPUTS, given, wanted, strict=True):
            off = float(np.abs(given_NK - wanted_NK).max())
            if not off <= TOLERANCE * max(1.0, float(np.abs(wanted_NK).max())):
                raise UserError(
                    f"the ONNX file was not written: its {name} differ from PyTorch's by {off:.3g}"
                    f" in a batch of {len(batch_NCHW)}"
                )
