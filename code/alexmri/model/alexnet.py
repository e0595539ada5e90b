"""AlexNet for MRI slices of any size from 32 pixels up, and the table of its layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTHS = (96, 256, 384, 384, 256)
HIDDEN = 4096
# From this side on the classic stem and pooling leave at least 2 x 2 values for the head.
MIN_CLASSIC_SIDE = 96
# The head of Krizhevsky's network at 224 pixels; larger inputs are averaged down to it.
MAX_HEAD_SIDE = 6


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the stem and the three poolings shrink an image, in pixels."""

    stem_stride: int
    stem_padding: int
    pool_kernel: int


def geometry_for(image_size: int) -> Geometry:
    """Return the geometry for square images of `image_size` pixels: classic from 96 up, else small.

    At 32 pixels the classic geometry (stride 4, three 3 x 3 poolings) leaves nothing: 7, 3, 1, 0.
    """
    if image_size >= MIN_CLASSIC_SIDE:
        return Geometry(stem_stride=4, stem_padding=2, pool_kernel=3)
    return Geometry(stem_stride=2, stem_padding=5, pool_kernel=2)


def _block(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class AverageDown(nn.Module):
    """Averages square maps (N, C, S, S) down to (N, C, side, side), as AdaptiveAvgPool2d does.

    By two matrix products, since on CUDA the gradient of that layer is not deterministic, so that
    PyTorch refuses it under `deterministic`. Maps that have the size already are left alone.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, maps_NCSS: Tensor) -> Tensor:
        found = maps_NCSS.shape[-1]
        if found == self.side:
            return maps_NCSS
        unit_SS = torch.eye(found, dtype=maps_NCSS.dtype, device=maps_NCSS.device)
        mean_SO = nn.functional.adaptive_avg_pool1d(unit_SS, self.side)
        return mean_SO.T @ maps_NCSS @ mean_SO


class AlexNet(nn.Module):
    """Five convolution blocks with batch norm, then 4096 -> 4096 -> classes with dropout.

    The layers are those of Krizhevsky, Sutskever and Hinton (2012) with widths 96, 256, 384,
    384, 256 and kernels 11, 5, 3, 3, 3; batch norm stands where local response norm stood.

    Input: float images (N, channels, image_size, image_size), about -1 to 1. Output: logits (N, K).
    """

    def __init__(self, classes: int, image_size: int, channels: int, dropout: float) -> None:
        super().__init__()
        shape = geometry_for(image_size)
        w1, w2, w3, w4, w5 = WIDTHS
        self.features = nn.Sequential(
            _block(channels, w1, 11, shape.stem_stride, shape.stem_padding),
            nn.MaxPool2d(shape.pool_kernel, 2),
            _block(w1, w2, 5, 1, 2),
            nn.MaxPool2d(shape.pool_kernel, 2),
            _block(w2, w3, 3, 1, 1),
            _block(w3, w4, 3, 1, 1),
            _block(w4, w5, 3, 1, 1),
            nn.MaxPool2d(shape.pool_kernel, 2),
        )
        side = min(_side_after(shape, image_size), MAX_HEAD_SIDE)
        self.pool = AverageDown(side)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(w5 * side * side, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, classes),
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits_NK: Tensor = self.classifier(self.pool(self.features(images_NCHW)))
        return logits_NK


def _side_after(shape: Geometry, image_size: int) -> int:
    side = (image_size + 2 * shape.stem_padding - 11) // shape.stem_stride + 1
    for _ in range(3):
        side = (side - shape.pool_kernel) // 2 + 1
    return side


def build(*, classes: int, image_size: int, channels: int, dropout: float, seed: int) -> AlexNet:
    """Return a network on the CPU, in training mode, whose weights are a function of `seed` alone.

    `image_size` is in pixels, 32 or more. `dropout` is a probability from 0 to below 1.

    Weights and biases are uniform within 1 / sqrt(fan-in), PyTorch's own default. He-normal weights
    (He et al. 2015) start six times as loud here, since the fully connected layers have no batch
    norm: the first epoch's loss was 6.4 instead of 1.0, and ten epochs did not make up for it.
    """
    with torch.device("meta"):
        network = AlexNet(classes, image_size, channels, dropout)
    network = network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.reset_parameters()
    return network


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: shape of its output without N, parameters, and multiply-adds per image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def summarise(*, classes: int, image_size: int, channels: int, dropout: float) -> list[Layer]:
    """Return the layers of the network in order, without making weights.

    `image_size` is in pixels. A multiply-add counts once.
    """
    with torch.device("meta"):
        network = AlexNet(classes, image_size, channels, dropout).eval()
        images_NCHW = torch.empty(1, channels, image_size, image_size)
    layers: list[Layer] = []

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            layers.append(_describe(name, module, tuple(output.shape[1:])))

        return hook

    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(note(name))
    network(images_NCHW)
    return layers


def _describe(name: str, module: nn.Module, output: tuple[int, ...]) -> Layer:
    parameters = sum(p.numel() for p in module.parameters())
    multiply_adds = 0
    if isinstance(module, nn.Conv2d):
        multiply_adds = module.weight.numel() * output[1] * output[2]
    elif isinstance(module, nn.Linear):
        multiply_adds = module.weight.numel()
    return Layer(name, type(module).__name__, output, parameters, multiply_adds)
