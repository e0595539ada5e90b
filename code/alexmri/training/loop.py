"""Train a network epoch by epoch, keep the best weights, and stop at any step on request."""

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.augment import Augment
from alexmri.data.batches import epoch_order, steps_per_epoch, train_batches
from alexmri.data.dataset import Part
from alexmri.data.feed import Feed
from alexmri.errors import UserError
from alexmri.evaluation.calibration import negative_log_likelihood
from alexmri.evaluation.metrics import confusion_matrix, macro_f1
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits, to_input
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import Checkpoint, CheckpointWriter, Progress
from alexmri.training.optim import AveragedWeights, build_optimizer, class_weights, learning_rate_at
from alexmri.training.step import train_step
from alexmri.training.tensor_names import (
    optimizer_tensors,
    restore_optimizer,
    with_prefix,
    without_prefix,
)
from alexmri.training.twin import Twin

# How often a run whose loss is no finite number goes back, and what its learning rate is then
# multiplied by.
RECOVERIES = 2
RECOVERY_FACTOR = 0.3


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
        # Convolution and pooling are faster when the channels of a pixel lie together.
        self.network = network.to(compute.device).to(memory_format=torch.channels_last).train()
        self.progress = Progress()
        self._train = train
        self._feed = Feed(train, compute.device)
        self._validation = validation
        self.settings = settings
        self.compute = compute
        self._augment = augment
        # What is served is computed in float32, so that is what the best epoch is chosen by.
        self._served = Compute(compute.device, "fp32")
        self._twin = Twin(self.network, compute.dtype)
        self._begin()
        self._first = {k: v.clone() for k, v in self.network.state_dict().items()}
        self._best: dict[str, Tensor] = {}
        self._class_weights_K: Tensor | None = None
        if settings.class_weights == "balanced":
            weights = class_weights(train.labels_N.tolist(), int(train.labels_N.max()) + 1)
            self._class_weights_K = weights.to(compute.device)
        self._saved_at = time.monotonic()

    def _begin(self) -> None:
        """Make all that follows from the weights as it is before the first step."""
        self._twin.take_weights()
        self._optimizer = build_optimizer(self.network, self.settings)
        fp16 = self.compute.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self.compute.device.type, enabled=fp16)
        decay = self.settings.ema_decay
        self._average = AveragedWeights(self.network, decay) if decay else None

    def epochs(
        self, stop: StopRequest, terminal: Terminal, writer: CheckpointWriter | None = None
    ) -> Iterator[dict[str, float]]:
        """Yield the metrics of every epoch until the run is over or `stop` asks for a halt.

        Checkpoints are given to `writer` when they are due, and when `stop` comes; without one
        there are none. A loss that is no finite number sends the run back to its best weights, at
        most twice.

        Raises:
            UserError: the loss ran away again and again, or a checkpoint could not be written.
        """
        self._saved_at = time.monotonic()
        while not self.is_over():
            started = time.monotonic()
            before = self.progress.step_in_epoch
            complete = self._train_epoch(stop, terminal, writer)
            seconds = time.monotonic() - started
            self.progress.seconds += seconds
            logits_NK = self._validate(stop) if complete else None
            if not np.isfinite(self.progress.loss_sum) or (
                logits_NK is not None and not np.isfinite(logits_NK).all()
            ):
                self._recover(terminal)
            elif logits_NK is None:
                self.save(writer)
                return
            else:
                images = max(0, len(self._train) - before * self.settings.batch_size)
                yield self._finish_epoch(logits_NK, images / seconds)
                if self._epoch_checkpoint_is_due():
                    self.save(writer)

    def _train_epoch(
        self, stop: StopRequest, terminal: Terminal, writer: CheckpointWriter | None
    ) -> bool:
        """Take the remaining steps of the epoch; return False where `stop` came between two."""
        settings, progress, device = self.settings, self.progress, self.compute.device
        images = len(self._train)
        order = epoch_order(images, seed=settings.seed, epoch=progress.epoch)
        batches = list(train_batches(order, settings.batch_size))
        coming = batches[progress.step_in_epoch :]
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
        right = torch.tensor(progress.right, device=device)
        for rows_N, (pixels_NCHW, labels_N) in zip(
            terminal.track(coming, len(coming), f"epoch {progress.epoch}/{settings.epochs}"),
            self._feed.batches(coming),
            strict=True,
        ):
            if stop:
                break
            if self._augment:
                pixels_NCHW = self._augment(pixels_NCHW, progress.epoch, rows_N)
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate(progress.step)
            # Dropout draws from the default generator, so that is set anew for every step.
            _generator(device).manual_seed(_step_seed(settings.seed, progress.step))
            loss, batch_right = train_step(
                self._twin,
                self._optimizer,
                self._scaler,
                to_input(pixels_NCHW),
                labels_N,
                class_weights_K=self._class_weights_K,
                label_smoothing=settings.label_smoothing,
            )
            if self._average:
                self._average.update(progress.step)
            loss_sum += loss * len(rows_N)
            right += batch_right
            progress.step += 1
            progress.step_in_epoch += 1
            if self._timed_checkpoint_is_due() and writer and not writer.busy:
                progress.loss_sum, progress.right = float(loss_sum), int(right)
                if np.isfinite(progress.loss_sum):
                    self.save(writer)
        progress.loss_sum, progress.right = float(loss_sum), int(right)
        return progress.step_in_epoch == len(batches)

    def _validate(self, stop: StopRequest) -> NDArray[np.float32] | None:
        """Return the logits of the validation split, or None where `stop` comes.

        Nothing is lost then: the epoch's steps are taken, and who resumes begins by validating.
        """
        try:
            with stop.interrupts(at=1):
                return predict_logits(self._evaluated(), self._validation.pixels_NCHW, self._served)
        except Stopped:
            return None

    def _recover(self, terminal: Terminal) -> None:
        """Go back to the best weights, or to the first, and repeat the epoch more slowly.

        These are states every run has, killed or not, so that resumed runs stay equal to whole
        ones.

        Raises:
            UserError: this has been done often enough.
        """
        progress, rate = self.progress, self.settings.learning_rate
        if progress.recoveries == RECOVERIES:
            raise UserError(
                f"the loss is no finite number in epoch {progress.epoch}, even with"
                f" {progress.learning_rate_factor:g} times the learning rate; lower learning_rate"
                f" ({rate:g}) or use precision fp32"
            )
        progress.recoveries += 1
        progress.learning_rate_factor *= RECOVERY_FACTOR
        self._repeat_epoch()
        self.network.load_state_dict(self._best or self._first)
        self._begin()
        terminal.warn(
            f"the loss is no finite number in epoch {progress.epoch}: going back to the weights of"
            f" {f'epoch {progress.best_epoch}' if self._best else 'the start'} with"
            f" {progress.learning_rate_factor:g} times the learning rate"
        )

    def _finish_epoch(
        self, logits_NK: NDArray[np.float32], images_per_second: float
    ) -> dict[str, float]:
        progress, images = self.progress, len(self._train)
        metrics = {
            "epoch": progress.epoch,
            "train_loss": progress.loss_sum / images,
            "train_accuracy": progress.right / images,
            **_validation_metrics(logits_NK, self._validation.labels_N),
            "learning_rate": self._learning_rate(progress.step - 1),
            "images_per_second": images_per_second,
        }
        progress.history.append(metrics)
        best = best_epoch(progress.history, self.settings.early_stopping_metric)
        if best == progress.epoch:
            progress.best_epoch = best
            self._best = {k: v.clone() for k, v in self._evaluated().state_dict().items()}
            self._first = {}
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

    def _epoch_checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every_epochs
        return bool(every and (self.progress.epoch - 1) % every == 0)

    def _timed_checkpoint_is_due(self) -> bool:
        seconds = self.settings.checkpoint_every_seconds
        return bool(seconds and time.monotonic() - self._saved_at >= seconds)

    def save(self, writer: CheckpointWriter | None) -> None:
        """Give the run as it stands now to `writer`."""
        if writer is None:
            return
        moving = {
            **with_prefix("network", self.network.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self._optimizer)),
        }
        if self._average:
            moving.update(with_prefix("average", self._average.network.state_dict()))
        if self._scaler.is_enabled():
            scale = self._scaler.state_dict()
            moving["scaler/scale"] = torch.tensor(scale["scale"])
            moving["scaler/_growth_tracker"] = torch.tensor(scale["_growth_tracker"])
        writer.save(self.progress, moving, with_prefix("best", self._best))
        self._saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, which may be of a run with other settings.

        What the settings of that run did not have (averages, another optimiser's state) begins
        anew; with another batch size the epoch does.
        """
        tensors, before = checkpoint.tensors, checkpoint.manifest["settings"]
        self.network.load_state_dict(without_prefix("network", tensors))
        self._begin()
        if before["optimizer"] == self.settings.optimizer:
            restore_optimizer(self._optimizer, without_prefix("optimizer", tensors))
        device = self.compute.device
        self._best = {k: v.to(device) for k, v in without_prefix("best", tensors).items()}
        self._first = {} if self._best else self._first
        if self._average and (average := without_prefix("average", tensors)):
            self._average.network.load_state_dict(average)
        if self._scaler.is_enabled() and (values := without_prefix("scaler", tensors)):
            self._scaler.load_state_dict(
                {**self._scaler.state_dict(), **{k: v.item() for k, v in values.items()}}
            )
        self.progress = checkpoint.progress
        if before["batch_size"] != self.settings.batch_size:
            steps = steps_per_epoch(len(self._train), self.settings.batch_size)
            self._repeat_epoch()
            self.progress.step = (self.progress.epoch - 1) * steps

    def _repeat_epoch(self) -> None:
        self.progress.step -= self.progress.step_in_epoch
        self.progress.step_in_epoch, self.progress.loss_sum, self.progress.right = 0, 0.0, 0

    def _evaluated(self) -> AlexNet:
        return self._average.network if self._average else self.network

    def _learning_rate(self, step: int) -> float:
        steps = steps_per_epoch(len(self._train), self.settings.batch_size)
        return learning_rate_at(step, steps, self.settings) * self.progress.learning_rate_factor


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


def _generator(device: torch.device) -> torch.Generator:
    """Return the device's default generator; torch.manual_seed would set those of all devices."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, 2)).generate_state(1, np.uint64)[0] >> 1)
