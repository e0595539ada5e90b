"""Compute steps in reduced precision while the weights live, and are moved, in float32."""

import copy

import torch
from torch import Tensor, nn

from alexmri.model.alexnet import AlexNet


class Twin:
    """The network that training steps pass images through.

    Its convolutions and linear layers are copies in reduced precision; batch norms are the
    network's own. The arithmetic is that of autocast, but autocast casts every weight in every
    step, and the gradients back, into memory the kernel has to clear first: a fifth of a step with
    64 images on a CPU. Here both are copied into memory that stays.

    In float32 the twin is the network itself.
    """

    def __init__(self, network: AlexNet, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._network = network
        self._copies: list[nn.Parameter] = []
        self._weights: list[nn.Parameter] = []
        if dtype != torch.float32:
            shared = (m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
            self._network = copy.deepcopy(network, {id(module): module for module in shared})
            for original, module in zip(network.modules(), self._network.modules(), strict=True):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    self._copies += module.to(dtype).parameters()
                    self._weights += original.parameters()
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, K) of float images, as float32."""
        logits_NK: Tensor = self._network(images_NCHW.to(self._dtype))
        return logits_NK.float()

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        """Give the network's weights the gradients that a backward pass left at the copies."""
        for weight, mine, gradient in zip(
            self._weights, self._copies, self._gradients, strict=True
        ):
            assert mine.grad is not None  # noqa: S101 - every weight takes part in the pass
            weight.grad = gradient.copy_(mine.grad)
            mine.grad = None

    @torch.no_grad()
    def take_weights(self) -> None:
        """Copy the network's weights, which have moved."""
        for weight, mine in zip(self._weights, self._copies, strict=True):
            mine.copy_(weight)
