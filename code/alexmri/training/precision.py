"""Compute steps in reduced precision while the weights live, and are moved, in float32."""

import copy

import torch
from torch import Tensor, nn

from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.training.distributed import ALONE, Workers


class LowPrecisionCopy:
    """The network that training steps pass images through.

    Its convolutions and linear layers have copies of the weights in reduced precision; batch norms
    share the network's own. The arithmetic is that of autocast, but autocast casts every weight in
    every step, and the gradients back, into memory the kernel has to clear first: a fifth of a step
    with 64 images on a CPU. Here both are copied into memory that stays.

    In float32 all weights are the network's own, and nothing is copied.
    """

    def __init__(self, network: AlexNet, compute: Compute, workers: Workers = ALONE) -> None:
        self._dtype = compute.dtype
        reduced = compute.dtype != torch.float32
        pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        if reduced:
            for weight in _weights_of_products(network):
                del shared[id(weight)]
        # A copy of the modules; what stands in `shared` is not copied.
        copied = copy.deepcopy(network, shared)
        if reduced:
            for module in copied.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(compute.dtype)
            pairs = list(
                zip(_weights_of_products(network), _weights_of_products(copied), strict=True)
            )
        self._weights: list[Tensor] = [weight for weight, _ in pairs]
        self._copies: list[Tensor] = [copied_weight for _, copied_weight in pairs]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]
        self._network = workers.wrap(copied, compute.device)

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits (N, K) of float images, as float32."""
        logits_NK: Tensor = self._network(images_NCHW.to(self._dtype))
        return logits_NK.float()

    @torch.no_grad()
    def copy_gradients(self) -> None:
        """Give the network's weights the gradients that a backward pass left at the copies."""
        if not self._copies:
            return
        reduced = [copied.grad for copied in self._copies if copied.grad is not None]
        torch._foreach_copy_(self._gradients, reduced)  # refuses lists of different lengths
        for weight, copied, gradient in zip(
            self._weights, self._copies, self._gradients, strict=True
        ):
            weight.grad, copied.grad = gradient, None

    @torch.no_grad()
    def copy_weights(self) -> None:
        """Copy the network's weights, which have moved."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)


def _weights_of_products(network: nn.Module) -> list[nn.Parameter]:
    """Return weights and biases of the convolutions and linear layers."""
    return [
        weight
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for weight in module.parameters()
    ]
