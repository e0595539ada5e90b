"""Write a model as ONNX, for runtimes without PyTorch, after proving that it answers the same.

The file takes what `data.pixels.decode` gives, `pixels`: uint8 (N, channels, size, size) with any
N, and holds the rest: normalisation, network, temperature. It gives `logits` and the calibrated
`probabilities`, both float32 (N, K). Classes are in its metadata. The graph is written node by node
from the folded network, so the same weights give the same bytes, and nothing is traced or pickled.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alexmri.data.pixels import PREPROCESSING, Pixels
from alexmri.errors import UserError
from alexmri.files import appearing
from alexmri.model.alexnet import AlexNet, AverageDown
from alexmri.model.forward import MEAN, STD, Compute, predict_logits
from alexmri.model.predictor import InferenceNetwork

# Of 2023: read by every onnxruntime from 1.15 on.
OPSET, IR_VERSION = 18, 9
BATCHES = (1, 3, 64)
# Relative to the largest logit; 2e-6 was measured.
TOLERANCE = 1e-4
CPU = Compute(torch.device("cpu"), "fp32")


def require_onnx() -> None:
    """Raise UserError where the packages for the export are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the ONNX export needs the package {error.name}, which is not installed:"
            " pip install onnx onnxruntime"
        ) from None


def export_onnx(
    path: Path,
    network: AlexNet,
    *,
    classes: tuple[str, ...],
    image_size: int,
    temperature: float,
    pixels_NCHW: Pixels,
) -> None:
    """Write `network` to `path`; the file appears once it agrees with torch about `pixels_NCHW`.

    They are asked in batches of 1, 3 and 64 pictures, repeated where there are fewer.

    Raises:
        UserError: onnx or onnxruntime is not installed, or the two disagree.
    """
    require_onnx()
    expected = {
        size: predict_logits(network, np.resize(pixels_NCHW, (size, *pixels_NCHW.shape[1:])), CPU)
        for size in BATCHES
    }
    model = _Graph().of(network, classes, image_size, temperature)
    with appearing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        _check(temporary, pixels_NCHW, expected, temperature)


def _check(
    path: Path,
    pixels_NCHW: Pixels,
    expected: dict[int, NDArray[np.float32]],
    temperature: float,
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size, logits_NK in expected.items():
        batch_NCHW = np.resize(pixels_NCHW, (size, *pixels_NCHW.shape[1:]))
        answer = session.run(["logits", "probabilities"], {"pixels": batch_NCHW})
        tempered = torch.from_numpy(logits_NK).double() / temperature
        wanted = (logits_NK, torch.softmax(tempered, dim=1).numpy())
        for name, given, right in zip(("logits", "probabilities"), answer, wanted, strict=True):
            off = float(np.abs(given - right).max())
            if not off <= TOLERANCE * max(1.0, float(np.abs(right).max())):
                raise UserError(
                    f"the ONNX file was not written: its {name} differ from PyTorch's by {off:.3g}"
                    f" in a batch of {size}"
                )


class _Graph:
    """Collects the nodes and weights of a graph in which each node takes the last one's output."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._to_tensor = helper, numpy_helper.from_array
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._last = "pixels"

    def of(
        self, network: AlexNet, classes: tuple[str, ...], image_size: int, temperature: float
    ) -> Any:
        """Return the ONNX model (a ModelProto) of `network` in evaluation mode."""
        from onnx import TensorProto

        folded = InferenceNetwork(network, CPU)
        channels = folded.stages[0][0].in_channels  # type: ignore[index]
        self._add("Cast", to=TensorProto.FLOAT)
        self._add("Div", np.float32(255 * STD))
        self._add("Sub", np.float32(MEAN / STD))
        values_NCHW = torch.zeros(1, channels, image_size, image_size)
        for layer in (*folded.stages, *folded.head):
            self._add_layer(layer, side=values_NCHW.shape[-1])
            values_NCHW = layer(values_NCHW)
        self._add("Identity", output="logits")
        self._add("Div", np.float32(temperature))
        self._add("Softmax", axis=1, output="probabilities")
        shape = ["N", channels, image_size, image_size]
        value, count = self._helper.make_tensor_value_info, len(classes)
        graph = self._helper.make_graph(
            self._nodes,
            "alexmri",
            [value("pixels", TensorProto.UINT8, shape)],
            [value(name, TensorProto.FLOAT, ["N", count]) for name in ("logits", "probabilities")],
            self._weights,
        )
        opset = self._helper.make_opsetid("", OPSET)
        model = self._helper.make_model(
            graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="alexmri"
        )
        facts = {"classes": json.dumps(classes), "preprocessing": PREPROCESSING}
        self._helper.set_model_props(model, facts)
        return model

    def _add_layer(self, layer: nn.Module, side: int) -> None:
        """Add one layer of the folded network, whose input is `side` values wide and high."""
        match layer:
            case nn.Sequential():
                for inner in layer:
                    self._add_layer(inner, side)
            case nn.Conv2d(weight=weight, bias=bias):
                self._add(
                    "Conv",
                    *(weight.contiguous().numpy(), bias.numpy()),  # type: ignore[union-attr]
                    strides=list(layer.stride),
                    pads=[*layer.padding, *layer.padding],
                )
            case nn.ReLU():
                self._add("Relu")
            case nn.MaxPool2d(kernel_size=kernel, stride=stride):
                self._add("MaxPool", kernel_shape=[kernel, kernel], strides=[stride, stride])
            case AverageDown(side=smaller) if smaller != side:
                # ONNX has no such layer, but it is linear: rows and columns are averaged in turn.
                mean_SO = nn.functional.adaptive_avg_pool1d(torch.eye(side), smaller).numpy()
                self._add("MatMul", mean_SO)
                self._add("MatMul", np.ascontiguousarray(mean_SO.T), weights_first=True)
            case nn.Flatten():
                self._add("Flatten", axis=1)
            case nn.Linear(weight=weight, bias=bias):
                self._add("Gemm", weight.numpy(), bias.numpy(), transB=1)

    def _add(
        self,
        kind: str,
        *weights: NDArray[np.float32] | np.float32,
        weights_first: bool = False,
        output: str | None = None,
        **attributes: Any,
    ) -> None:
        number = len(self._nodes)
        names = [f"weight_{number}_{i}" for i in range(len(weights))]
        for name, weight in zip(names, weights, strict=True):
            self._weights.append(self._to_tensor(np.asarray(weight), name))
        inputs = [*names, self._last] if weights_first else [self._last, *names]
        self._last = output or f"value_{number}"
        self._nodes.append(self._helper.make_node(kind, inputs, [self._last], **attributes))
