"""List the layers of a network with their output shapes, parameters and arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alexmri.model.alexnet import AlexNet


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its output without the batch axis, parameters, and multiply-adds per image."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


def summarise(*, classes: int, image_size: int, channels: int, dropout: float) -> list[Layer]:
    """Return the layers of the network in order; runs on shapes alone (the meta device)."""
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
