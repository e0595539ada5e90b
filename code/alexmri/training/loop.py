"""Train a network epoch by epoch, keep the best weights, and stop at any step on request."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexmri.contract.signals import StopRequest
from alexmri.data.batches import epoch_order, steps_per_epoch, train_batches
from alexmri.data.dataset import Part
from alexmri.data.pixels import Pixels
from alexmri.errors import UserError
from alexmri.evaluation.calibration import negative_log_likelihood
from alexmri.evaluation.metrics import confusion_matrix, macro_f1
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits, to_input
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import (
    Checkpoint,
    Progress,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from alexmri.training.optim import AveragedWeights, build_optimizer, class_weights, learning_rate_at
from alexmri.training.step import train_step


class Augment(Protocol):
    """What the loop asks of augmentation; see alexmri.data.augment."""

    def __call__(self, pixels_NCHW: Pixels, epoch: int, indices: Sequence[int]) -> Pixels: ...


class Run:
    """A training run under way.

    Its state is the network, its averaged twin, the optimiser, the best weights so far and a
    `Progress`. Order, augmentation and dropout are functions of (seed, epoch, index) or (seed,
    step), so a run continued from a checkpoint equals the run that was never stopped.
    """

    def __init__(
        self,
        network: AlexNet,
        train: Part,
        validation: Part,
        settings: Settings,
        compute: Compute,
        augment: Augment | None,
    ) -> None:
        self.network = network.to(compute.device).train()
        self.progress = Progress()
        self._train = train
        self._validation = validation
        self.settings = settings
        self.compute = compute
        self._augment = augment
        self._optimizer = build_optimizer(self.network, settings)
        fp16 = compute.precision == "fp16"
        self._scaler = torch.amp.GradScaler(compute.device.type, enabled=fp16)
        self._average = (
            AveragedWeights(self.network, settings.ema_decay) if settings.ema_decay else None
        )
        self._best: dict[str, Tensor] = {}
        self._class_weights_K: Tensor | None = None
        if settings.class_weights == "balanced":
            weights = class_weights(train.labels_N.tolist(), int(train.labels_N.max()) + 1)
            self._class_weights_K = weights.to(compute.device)
        self._saved_at = time.monotonic()

    def epochs(self, stop: StopRequest, terminal: Terminal) -> Iterator[dict[str, float]]:
        """Yield the metrics of every epoch until the run is over or `stop` asks for a halt.

        Raises:
            UserError: the loss is no longer a finite number.
        """
        while not self.is_over():
            started = time.monotonic()
            before = self.progress.step_in_epoch
            if not self._train_epoch(stop, terminal):
                self.progress.seconds += time.monotonic() - started
                return
            seconds = time.monotonic() - started
            images = len(self._train) - before * self.settings.batch_size
            self.progress.seconds += seconds
            yield self._finish_epoch(images / seconds)

    def _train_epoch(self, stop: StopRequest, terminal: Terminal) -> bool:
        """Take the remaining steps of the epoch; return False where `stop` came between two."""
        settings, progress, device = self.settings, self.progress, self.compute.device
        images = len(self._train)
        order = epoch_order(images, seed=settings.seed, epoch=progress.epoch)
        batches = list(train_batches(order, settings.batch_size))
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
        right = torch.tensor(progress.right, device=device)
        for indices in terminal.track(
            batches[progress.step_in_epoch :],
            len(batches) - progress.step_in_epoch,
            f"epoch {progress.epoch}/{settings.epochs}",
        ):
            if stop:
                break
            pixels_NCHW = self._train.pixels_NCHW[indices]
            if self._augment:
                pixels_NCHW = self._augment(pixels_NCHW, progress.epoch, indices.tolist())
            labels_N = torch.from_numpy(self._train.labels_N[indices]).to(device)
            self._set_learning_rate(learning_rate_at(progress.step, len(batches), settings))
            # Dropout draws from the default generator, so that is set anew for every step.
            torch.manual_seed(_step_seed(settings.seed, progress.step))
            loss, batch_right = train_step(
                self.network,
                self._optimizer,
                self._scaler,
                to_input(pixels_NCHW, device),
                labels_N,
                compute=self.compute,
                class_weights_K=self._class_weights_K,
                label_smoothing=settings.label_smoothing,
            )
            if self._average:
                self._average.update(progress.step)
            loss_sum += loss * len(indices)
            right += batch_right
            progress.step += 1
            progress.step_in_epoch += 1
        progress.loss_sum, progress.right = float(loss_sum), int(right)
        self._refuse_run_away(progress.loss_sum)
        return progress.step_in_epoch == len(batches)

    def _finish_epoch(self, images_per_second: float) -> dict[str, float]:
        progress, images = self.progress, len(self._train)
        logits_NK = predict_logits(self._evaluated(), self._validation.pixels_NCHW, self.compute)
        metrics = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / images,
            "train_accuracy": progress.right / images,
            **_validation_metrics(logits_NK, self._validation.labels_N),
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "images_per_second": images_per_second,
        }
        self._refuse_run_away(metrics["val_loss"])
        progress.history.append(metrics)
        best = best_epoch(progress.history, self.settings.early_stopping_metric)
        if best == progress.epoch:
            progress.best_epoch = best
            self._best = {k: v.clone() for k, v in self._evaluated().state_dict().items()}
        progress.epoch += 1
        progress.step_in_epoch, progress.loss_sum, progress.right = 0, 0.0, 0
        return metrics

    def best_network(self) -> AlexNet:
        """Return the network with the weights of the best epoch so far."""
        self.network.load_state_dict(self._best)
        return self.network.eval()

    @property
    def done_share(self) -> float:
        """How much of the planned steps is done, 0 to 1."""
        steps = steps_per_epoch(len(self._train), self.settings.batch_size)
        return self.progress.step / (steps * self.settings.epochs)

    def is_over(self) -> bool:
        """Whether epochs, patience or time budget are used up."""
        settings, progress = self.settings, self.progress
        done = progress.epoch - 1
        if done >= settings.epochs:
            return True
        patience = settings.early_stopping_patience
        if patience and done - progress.best_epoch >= patience:
            return True
        budget = settings.time_budget_seconds
        return bool(budget and done and progress.seconds * (done + 1) / done > budget)

    def checkpoint_is_due(self) -> bool:
        """Whether an epoch end is the moment for a checkpoint."""
        every, seconds = (
            self.settings.checkpoint_every_epochs,
            self.settings.checkpoint_every_seconds,
        )
        return bool(
            (every and (self.progress.epoch - 1) % every == 0)
            or (seconds and time.monotonic() - self._saved_at >= seconds)
        )

    def save(self, folder: Path, manifest: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the run as it stands now."""
        tensors = {
            **with_prefix("network", self.network.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self._optimizer)),
            **with_prefix("best", self._best),
        }
        if self._average:
            tensors.update(with_prefix("average", self._average.network.state_dict()))
        if self._scaler.is_enabled():
            scale = self._scaler.state_dict()
            tensors["scaler/scale"] = torch.tensor(scale["scale"])
            tensors["scaler/_growth_tracker"] = torch.tensor(scale["_growth_tracker"])
        path = save_checkpoint(
            folder, self.progress, tensors, manifest, keep=self.settings.keep_checkpoints
        )
        self._saved_at = time.monotonic()
        return path

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`."""
        tensors = checkpoint.tensors
        self.network.load_state_dict(without_prefix("network", tensors))
        restore_optimizer(self._optimizer, without_prefix("optimizer", tensors))
        device = self.compute.device
        self._best = {k: v.to(device) for k, v in without_prefix("best", tensors).items()}
        if self._average:
            self._average.network.load_state_dict(without_prefix("average", tensors))
        if self._scaler.is_enabled():
            values = without_prefix("scaler", tensors)
            self._scaler.load_state_dict(
                {**self._scaler.state_dict(), **{k: v.item() for k, v in values.items()}}
            )
        self.progress = checkpoint.progress

    def _refuse_run_away(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise UserError(
                f"the loss is {loss} in epoch {self.progress.epoch}; lower learning_rate"
                f" ({self.settings.learning_rate:g}) or use precision fp32"
            )

    def _evaluated(self) -> AlexNet:
        return self._average.network if self._average else self.network

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate


def best_epoch(history: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return the epoch with the best validation metric; ties go to the lower loss, then first."""

    def merit(row: Mapping[str, float]) -> tuple[float, float]:
        value = -row["val_loss"] if metric == "loss" else row[f"val_{metric}"]
        return value, -row["val_loss"]

    return int(max(history, key=merit)["epoch"]) if history else 0


def _validation_metrics(
    logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> dict[str, float]:
    predicted_N = logits_NK.argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, predicted_N, logits_NK.shape[1])
    return {
        "val_loss": negative_log_likelihood(logits_NK, labels_N),
        "val_accuracy": float((predicted_N == labels_N).mean()),
        "val_macro_f1": macro_f1(confusion_KK),
    }


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, 2)).generate_state(1, np.uint64)[0] >> 1)
