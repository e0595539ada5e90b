"""How weights move: the optimiser, the learning rate of every step, the averaged weights."""

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alexmri.model.alexnet import AlexNet
from alexmri.settings import Settings

# One-cycle policy (Smith & Topin 2017): rise for 30 % of the steps from 1/25 of the peak, then
# fall to 1/10,000 of the start, each along half a cosine; PyTorch's OneCycleLR has these defaults.
RISE_SHARE = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 1e4


def build_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimiser; weight decay acts on weight matrices, not on biases or batch norm."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    momentum = settings.momentum
    rate: float | Tensor = settings.learning_rate
    optimizer: torch.optim.Optimizer
    if on_gpu := weights[0].is_cuda:  # where a captured step reads it
        rate = torch.tensor(settings.learning_rate, device=weights[0].device)
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            groups, lr=rate, betas=(momentum, 0.999), fused=True, capturable=on_gpu
        )
        # Its first steps are taken outside the capture (alexmri.training.step_graph).
        warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
    else:
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
    return optimizer


@torch.no_grad()
def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give state that was read from a file the memory layout of its weight.

    The fused optimisers on a CPU walk through both in memory order, whatever the strides say.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate_at(step: int, steps_per_epoch: int, settings: Settings) -> float:
    """Return the learning rate of optimiser step `step` (from 0)."""
    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    peak = settings.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup - 1)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "cosine":
        return _half_cosine(peak, 0.0, progress)
    start = peak / START_DIVISOR
    if progress < RISE_SHARE:
        return _half_cosine(start, peak, progress / RISE_SHARE)
    return _half_cosine(peak, start / END_DIVISOR, (progress - RISE_SHARE) / (1 - RISE_SHARE))


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def class_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Return weights (K,) inversely proportional to class frequency, 1 on average over images."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes).float()
    return counts.sum() / (classes * counts)


class AveragedWeights:
    """An exponential moving average of the weights and batch-norm statistics of a network.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average forgets the random
    start quickly.
    """

    def __init__(self, network: AlexNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        pairs = [
            (mean, value)
            for mean, value in zip(
                self.network.state_dict(keep_vars=True).values(),
                network.state_dict(keep_vars=True).values(),
                strict=True,
            )
            if mean.is_floating_point()
        ]
        self._means = [mean for mean, _ in pairs]
        self._values = [value for _, value in pairs]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after optimiser step `step` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._means, self._values, 1 - decay)
