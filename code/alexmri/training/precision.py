"""Compute steps in reduced precision while the weights live, and are moved, in float32."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alexmri.model.alexnet import AlexNet
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.global_layers import Batch, GlobalBatchNorm, GlobalDropout
from alexmri.training.gradients import summing


class Twin:
    """The network that training steps pass images through.

    Its convolutions and linear layers are copies in reduced precision; batch norms are the
    network's own. The arithmetic is that of autocast, but autocast casts every weight in every
    step, and the gradients back, into memory the kernel has to clear first: a fifth of a step with
    64 images on a CPU. Here both are copied into memory that stays.

    In float32 the twin is the network itself. Where several workers train, its layers are those
    that see the whole batch, and its gradients are sums over the workers.
    """

    def __init__(self, network: AlexNet, dtype: torch.dtype, workers: Workers = ALONE) -> None:
        self._dtype = dtype
        self._network: nn.Module = network
        self._copies: list[nn.Parameter] = []
        self._weights: list[nn.Parameter] = []
        self._alone = workers.alone
        self._batch = Batch()
        reduced = dtype != torch.float32
        if reduced or not workers.alone:
            stay: dict[int, nn.Module] = {}
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    stay[id(module)] = module
                    if not workers.alone:
                        stay[id(module)] = GlobalBatchNorm(module, self._batch, workers)
                elif isinstance(module, nn.Dropout) and not workers.alone:
                    stay[id(module)] = GlobalDropout(module, self._batch, workers)
                elif isinstance(module, nn.Conv2d | nn.Linear) and not reduced:
                    stay[id(module)] = module
            self._network = copy.deepcopy(network, stay)
        if reduced:
            for original, module in zip(network.modules(), self._network.modules(), strict=True):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    self._copies += module.to(dtype).parameters()
                    self._weights += original.parameters()
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    def logits(self, images_NCHW: Tensor, batch_images: int | None = None) -> Tensor:
        """Return the logits (N, K) of float images, as float32.

        `batch_images` is how many the batch has over all workers.
        """
        images_NCHW = images_NCHW.to(self._dtype)
        if not self._alone and not isinstance(self._network, DistributedDataParallel):
            self._network = summing(self._network, images_NCHW)
        self._batch.images = batch_images or len(images_NCHW)
        logits_NK: Tensor = self._network(images_NCHW)
        return logits_NK.float()

    def apart(self) -> AbstractContextManager[None]:
        """Leave each worker its own gradients in the block: what is saved is what sums cost."""
        if isinstance(self._network, DistributedDataParallel):
            return self._network.no_sync()
        return nullcontext()

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
