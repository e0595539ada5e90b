"""What the steps of a run change and checkpoints hold: weights, optimiser, averages."""

from collections.abc import Mapping

import torch
from torch import Tensor

from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute
from alexmri.settings import Settings
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.optim import AveragedWeights, build_optimizer
from alexmri.training.precision import LowPrecisionCopy


class State:
    """The network, the optimiser, the averaged weights, and the best weights so far."""

    def __init__(
        self, network: AlexNet, settings: Settings, compute: Compute, workers: Workers = ALONE
    ) -> None:
        # Convolution and pooling are faster when the channels of a pixel lie together.
        self.network = network.to(compute.device).to(memory_format=torch.channels_last).train()
        self.low_precision = LowPrecisionCopy(self.network, compute, workers)
        self._settings = settings
        self._compute = compute
        self._begin()
        self._first = {k: v.clone() for k, v in self.network.state_dict().items()}
        self._best: dict[str, Tensor] = {}

    def _begin(self) -> None:
        """Make all that follows from the weights as it is before the first step."""
        self.low_precision.copy_weights()
        self.optimizer = build_optimizer(self.network, self._settings)
        fp16 = self._compute.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self._compute.device.type, enabled=fp16)
        decay = self._settings.ema_decay
        self.average = AveragedWeights(self.network, decay) if decay else None

    def evaluated(self) -> AlexNet:
        """Return the network that validation measures: the averaged one, where there is one."""
        return self.average.network if self.average else self.network

    def keep_as_best(self) -> None:
        """Remember the weights that validation has just measured."""
        self._best = {k: v.clone() for k, v in self.evaluated().state_dict().items()}
        self._first = {}

    def best_network(self) -> AlexNet:
        """Return the network with the best weights."""
        self.network.load_state_dict(self._best)
        return self.network.eval()

    def go_back(self) -> None:
        """Begin anew from the best weights, or from the first.

        These are weights every run has, killed or not, so that resumed runs stay equal to whole
        ones.
        """
        self.network.load_state_dict(self._best or self._first)
        self._begin()

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the tensors that steps change, and those that are only ever replaced."""
        mutable = {
            **_with_prefix("network", self.network.state_dict()),
            **_with_prefix("optimizer", _optimizer_tensors(self.optimizer)),
        }
        if self.average:
            mutable.update(_with_prefix("average", self.average.network.state_dict()))
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            mutable["scaler/scale"] = torch.tensor(scale["scale"])
            mutable["scaler/_growth_tracker"] = torch.tensor(scale["_growth_tracker"])
        return mutable, _with_prefix("best", self._best)

    def restore(self, tensors: Mapping[str, Tensor], *, with_optimizer: bool) -> None:
        """Take over tensors that `tensors()` returned, perhaps of a run with other settings.

        What that run did not have (averages, a scaler) begins anew.
        """
        self.network.load_state_dict(_without_prefix("network", tensors))
        self._begin()
        if with_optimizer:
            _restore_optimizer(self.optimizer, _without_prefix("optimizer", tensors))
        device = self._compute.device
        self._best = {k: v.to(device) for k, v in _without_prefix("best", tensors).items()}
        self._first = {} if self._best else self._first
        if self.average and (average := _without_prefix("average", tensors)):
            self.average.network.load_state_dict(average)
        if self.scaler.is_enabled() and (values := _without_prefix("scaler", tensors)):
            self.scaler.load_state_dict(
                {**self.scaler.state_dict(), **{k: v.item() for k, v in values.items()}}
            )


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors: `PARAMETER.NAME`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the state `_optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}/")
    }
