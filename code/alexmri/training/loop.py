"""Train a network epoch by epoch, keep the best weights, and stop at any step on request."""

import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.augment import Augment
from alexmri.data.batches import Indices, epoch_order, steps_per_epoch, train_batches
from alexmri.data.dataset import Part, Rows
from alexmri.data.loader import Loader
from alexmri.errors import UserError
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits, to_input
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import Checkpoint, CheckpointWriter, Progress
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.optim import class_weights, learning_rate_at
from alexmri.training.state import State
from alexmri.training.step import Whole, train_step
from alexmri.training.validation import best_epoch, validation_metrics

# How often a run whose loss is no finite number goes back, and what its learning rate is then
# multiplied by.
RECOVERIES = 2
RECOVERY_FACTOR = 0.3


class Run:
    """A training run under way: what it learns from, a `State` and a `Progress`.

    Order, augmentation and dropout are functions of (seed, epoch, index) or (seed,
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
        workers: Workers = ALONE,
    ) -> None:
        self.state = State(network, settings, compute, workers)
        self.progress = Progress()
        self._train = train
        self._feed = Loader(train, compute.device, sharing=workers.local_size)
        self._validation = validation
        self.settings = settings
        self.compute = compute
        self._augment = augment
        self.workers = workers
        # What is served is computed in float32, so that is what the best epoch is chosen by.
        self._served = Compute(compute.device, "fp32")
        self._class_weights_K, self._weights_N = None, None
        if settings.class_weights == "balanced":
            weights = class_weights(train.labels_N.tolist(), int(train.labels_N.max()) + 1)
            self._class_weights_K = weights.to(compute.device)
            self._weights_N = weights.numpy()[train.labels_N]
        self._saved_at = time.monotonic()

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
            # The first worker's clock counts: on time depends who goes on.
            seconds = self.workers.json_from_first(time.monotonic() - started)
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
        settings, progress, state = self.settings, self.progress, self.state
        device = self.compute.device
        images = len(self._train)
        order = epoch_order(images, seed=settings.seed, epoch=progress.epoch)
        batches = list(train_batches(order, settings.batch_size))
        coming = batches[progress.step_in_epoch :]
        loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
        right = torch.tensor(progress.right, device=device)
        # Of every batch this worker computes a part; alone, that is all of it.
        own = [rows_N[self.workers.share(len(rows_N))] for rows_N in coming]
        for rows_N, own_N, (pixels_NCHW, labels_N) in zip(
            terminal.track(coming, len(coming), f"epoch {progress.epoch}/{settings.epochs}"),
            own,
            self._feed.batches(own),
            strict=True,
        ):
            if self.workers.stopping(stop):
                break
            if self._augment and len(own_N):
                pixels_NCHW = self._augment(pixels_NCHW, progress.epoch, own_N)
            for group in state.optimizer.param_groups:
                group["lr"] = self._learning_rate(progress.step)
            # Dropout draws from the default generator, so that is set anew for every step.
            _generator(device).manual_seed(_step_seed(settings.seed, progress.step))
            loss, batch_right = train_step(
                state.twin,
                state.optimizer,
                state.scaler,
                to_input(pixels_NCHW),
                labels_N,
                class_weights_K=self._class_weights_K,
                label_smoothing=settings.label_smoothing,
                whole=None if self.workers.alone else self._whole(rows_N),
                workers=self.workers,
            )
            if state.average:
                state.average.update(progress.step)
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
        pixels_NCHW = self._validation.pixels_NCHW
        own_N = np.arange(len(pixels_NCHW))[self.workers.share(len(pixels_NCHW))]
        logits_NK = None
        with suppress(Stopped), stop.interrupts(at=1):
            logits_NK = predict_logits(
                self.state.evaluated(), Rows(pixels_NCHW, own_N), self._served
            )
        if self.workers.alone:
            return logits_NK
        # Only what nobody waits for was interrupted.
        if self.workers.stopping(stop):
            return None
        own = torch.from_numpy(logits_NK)
        return self.workers.gather_rows(own, len(pixels_NCHW)).numpy()

    def _recover(self, terminal: Terminal) -> None:
        """Go back to the best weights, or to the first, and repeat the epoch more slowly.

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
        self.state.go_back()
        terminal.warn(
            f"the loss is no finite number in epoch {progress.epoch}: going back to the weights of"
            f" {f'epoch {progress.best_epoch}' if progress.best_epoch else 'the start'} with"
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
            **validation_metrics(logits_NK, self._validation.labels_N),
            "learning_rate": self._learning_rate(progress.step - 1),
            "images_per_second": images_per_second,
        }
        progress.history.append(metrics)
        best = best_epoch(progress.history, self.settings.early_stopping_metric)
        if best == progress.epoch:
            progress.best_epoch = best
            self.state.keep_as_best()
        progress.epoch += 1
        progress.step_in_epoch, progress.loss_sum, progress.right = 0, 0.0, 0
        return metrics

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
        mutable, immutable = self.state.tensors()
        writer.save(self.progress, mutable, immutable)
        self._saved_at = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`, which may be of a run with other settings.

        With another optimiser its state begins anew, with another batch size the epoch does.
        """
        before = checkpoint.resume_check["settings"]
        same = before["optimizer"] == self.settings.optimizer
        self.state.restore(checkpoint.tensors, with_optimizer=same)
        self.progress = checkpoint.progress
        if before["batch_size"] != self.settings.batch_size:
            steps = steps_per_epoch(len(self._train), self.settings.batch_size)
            self._repeat_epoch()
            self.progress.step = (self.progress.epoch - 1) * steps

    def _repeat_epoch(self) -> None:
        self.progress.step -= self.progress.step_in_epoch
        self.progress.step_in_epoch, self.progress.loss_sum, self.progress.right = 0, 0.0, 0

    def _whole(self, rows_N: Indices) -> Whole:
        """Return what each worker must know of the batch it computes a part of."""
        weights_N = self._weights_N
        return Whole(
            len(rows_N), len(rows_N) if weights_N is None else float(weights_N[rows_N].sum())
        )

    def _learning_rate(self, step: int) -> float:
        steps = steps_per_epoch(len(self._train), self.settings.batch_size)
        return learning_rate_at(step, steps, self.settings) * self.progress.learning_rate_factor


def _generator(device: torch.device) -> torch.Generator:
    """Return the device's default generator; torch.manual_seed would set those of all devices."""
    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, 2)).generate_state(1, np.uint64)[0] >> 1)
