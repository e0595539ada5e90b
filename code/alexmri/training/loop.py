"""Train a network epoch by epoch, keep the best weights, and stop at any step on request."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.augment import Augment
from alexmri.data.dataset import Part, Rows
from alexmri.data.loader import Indices, Loader, epoch_order, steps_per_epoch, train_batches
from alexmri.errors import UserError
from alexmri.evaluation.calibration import negative_log_likelihood
from alexmri.evaluation.rates import confusion_matrix, macro_f1
from alexmri.model.alexnet import AlexNet
from alexmri.model.forward import Compute, predict_logits, to_input
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.training.checkpoint import Checkpoint, CheckpointWriter, Progress
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.optim import class_weights, learning_rate_at, set_learning_rate
from alexmri.training.state import State
from alexmri.training.step_graph import Step, step_on

# How often a run whose loss is no finite number goes back, and what its learning rate is then
# multiplied by.
RECOVERIES = 2
RECOVERY_FACTOR = 0.3


def train_step(
    state: State,
    pixels_NCHW: Tensor,
    labels_N: Tensor,
    *,
    class_weights_K: Tensor | None,
    label_smoothing: float,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Move the weights once; return the mean loss and the number of right answers, on the device.

    Nothing here waits for the device: the caller adds the two results up and reads them once an
    epoch. `pixels_NCHW` are `uint8`. `share` weights the loss where several workers compute parts
    of a batch that differ in size: the mean of their gradients then is the gradient of the whole
    batch's mean loss.
    """
    logits_NK = state.low_precision.logits(to_input(pixels_NCHW))
    loss = F.cross_entropy(
        logits_NK, labels_N, weight=class_weights_K, label_smoothing=label_smoothing
    )
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    state.low_precision.copy_gradients()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.low_precision.copy_weights()
    with torch.no_grad():
        right = (logits_NK.argmax(dim=1) == labels_N).sum()
    return loss.detach(), right


class Run:
    """A training run in progress: what it learns from, a `State` and a `Progress`.

    Order, augmentation and dropout are functions of (seed, epoch, index) or (seed, step, rank), so
    a run continued from a checkpoint equals the run that was never stopped.
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
        self.settings = settings
        self.compute = compute
        self.workers = workers
        self._train = train
        self._loader = Loader(train, compute.device, sharing=workers.local_size)
        self._validation = validation
        self._augment = augment
        # What is served is computed in float32, so that is what the best epoch is chosen by.
        self._served = Compute(compute.device, "fp32")
        self._class_weights_K: Tensor | None = None
        self._weights_N = np.ones(len(train), dtype=np.float32)
        if settings.class_weights == "balanced":
            weights_K = class_weights(train.labels_N.tolist(), int(train.labels_N.max()) + 1)
            self._class_weights_K = weights_K.to(compute.device)
            self._weights_N = weights_K.numpy()[train.labels_N]
        self._step = self._first_step()
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
            steps_done = self.progress.step_in_epoch
            complete = self._train_epoch(stop, terminal, writer)
            # The first worker's clock counts: the time budget hangs on it.
            seconds = float(self.workers.from_first(repr(time.monotonic() - started).encode()))
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
                images = max(0, len(self._train) - steps_done * self.settings.batch_size)
                yield self._finish_epoch(logits_NK, images / seconds)
                if self._epoch_checkpoint_is_due():
                    self.save(writer)

    def _train_epoch(
        self, stop: StopRequest, terminal: Terminal, writer: CheckpointWriter | None
    ) -> bool:
        """Take the remaining steps of the epoch; return False where `stop` came between two."""
        settings, progress, workers = self.settings, self.progress, self.workers
        device = self.compute.device
        order = epoch_order(len(self._train), seed=settings.seed, epoch=progress.epoch)
        batches = list(train_batches(order, settings.batch_size))
        coming = batches[progress.step_in_epoch :]
        # Of every batch this worker computes a part; alone, that is all of it.
        local = [self._local_rows(rows_N) for rows_N in coming]
        shares = [self._share_of_loss(rows_N) for rows_N in coming]
        # Each worker adds up its own part; the first one's begins with what a checkpoint holds.
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        right = torch.zeros((), dtype=torch.int64, device=device)
        if workers.is_first:
            loss_sum += progress.loss_sum
            right += progress.right

        for rows_N, local_N, share, (pixels_NCHW, labels_N) in zip(
            terminal.track(coming, len(coming), f"epoch {progress.epoch}/{settings.epochs}"),
            local,
            shares,
            self._loader.batches(local),
            strict=True,
        ):
            saves = writer is not None and self._timed_checkpoint_is_due() and not writer.busy
            signal_number, saving = workers.max(stop.number, int(saves))
            if saving:
                self._add_up(loss_sum, right)
                if np.isfinite(progress.loss_sum):
                    self.save(writer)
            if signal_number:
                stop.join(signal_number)
                break

            if self._augment:
                pixels_NCHW = self._augment(pixels_NCHW, progress.epoch, local_N)
            rate = learning_rate_at(progress.step, len(batches), settings)
            set_learning_rate(self.state.optimizer, rate * progress.learning_rate_factor)
            _seed_dropout(device, settings.seed, progress.step, workers.rank)
            loss, batch_right = self._step(pixels_NCHW, labels_N, share=share)
            if self.state.average:
                self.state.average.update(progress.step)
            loss_sum += loss * (len(rows_N) * share / workers.size)
            right += batch_right * bool(share)
            progress.step += 1
            progress.step_in_epoch += 1
        self._add_up(loss_sum, right)
        return progress.step_in_epoch == len(batches)

    def _first_step(self) -> Step:
        """Return what takes the steps from the state as it stands now."""
        step = partial(
            train_step,
            self.state,
            class_weights_K=self._class_weights_K,
            label_smoothing=self.settings.label_smoothing,
        )
        return step_on(self.compute.device, step, self.workers)

    def _local_rows(self, rows_N: Indices) -> Indices:
        """Return the rows of a batch that this worker computes; where none is left, any one."""
        local_N = rows_N[self.workers.local_slice(len(rows_N))]
        return local_N if len(local_N) else rows_N[:1]

    def _share_of_loss(self, rows_N: Indices) -> float:
        """Return what this worker's mean loss counts in the batch's; 1 for a worker alone."""
        weights_N = self._weights_N[rows_N]
        local_N = weights_N[self.workers.local_slice(len(rows_N))]
        return float(local_N.sum() / weights_N.sum()) * self.workers.size

    def _add_up(self, loss_sum: Tensor, right: Tensor) -> None:
        """Put the sums of all workers into the progress."""
        sums = self.workers.sum(torch.stack([loss_sum, right.double()]))
        self.progress.loss_sum, self.progress.right = float(sums[0]), int(sums[1])

    def _validate(self, stop: StopRequest) -> NDArray[np.float32] | None:
        """Return the logits of the validation split, or None where `stop` comes.

        Nothing is lost then: the epoch's steps are taken, and a resumed run begins by validating.
        """
        pixels_NCHW, network = self._validation.pixels_NCHW, self.state.evaluated()
        self.workers.broadcast_buffers(network)
        local_N = np.arange(len(pixels_NCHW))[self.workers.local_slice(len(pixels_NCHW))]
        logits_NK = None
        with suppress(Stopped), self.workers.interrupts(stop):
            logits_NK = predict_logits(network, Rows(pixels_NCHW, local_N), self._served)
        if self.workers.agree_to_stop(stop) or logits_NK is None:
            return None
        rows = torch.from_numpy(logits_NK)
        gathered: NDArray[np.float32] = self.workers.gather_rows(rows, len(pixels_NCHW)).numpy()
        return gathered

    def _recover(self, terminal: Terminal) -> None:
        """Go back to the best weights, or to the first, and repeat the epoch more slowly.

        Raises:
            UserError: this has been done often enough.
        """
        progress, rate = self.progress, self.settings.learning_rate
        if progress.recoveries == RECOVERIES:
            raise UserError(
                f"the loss is not a finite number in epoch {progress.epoch}, even with"
                f" {progress.learning_rate_factor:g} times the learning rate; lower learning_rate"
                f" ({rate:g}) or use precision fp32"
            )
        progress.recoveries += 1
        progress.learning_rate_factor *= RECOVERY_FACTOR
        self._repeat_epoch()
        self.state.go_back()
        self._step = self._first_step()
        terminal.warn(
            f"the loss is not a finite number in epoch {progress.epoch}: going back to the"
            " weights of"
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
    def images_to_go(self) -> int:
        """How many images the epochs that are left take."""
        return (self.settings.epochs + 1 - self.progress.epoch) * len(self._train)

    def is_over(self) -> bool:
        """Whether epochs, patience or time budget are used up; never within an epoch."""
        settings, progress = self.settings, self.progress
        done = progress.epoch - 1
        if progress.step_in_epoch:
            return False
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
        self._step = self._first_step()
        self.progress = checkpoint.progress
        if before["batch_size"] != self.settings.batch_size:
            steps = steps_per_epoch(len(self._train), self.settings.batch_size)
            self._repeat_epoch()
            self.progress.step = (self.progress.epoch - 1) * steps

    def _repeat_epoch(self) -> None:
        self.progress.step -= self.progress.step_in_epoch
        self.progress.step_in_epoch, self.progress.loss_sum, self.progress.right = 0, 0.0, 0

    def _learning_rate(self, step: int) -> float:
        steps = steps_per_epoch(len(self._train), self.settings.batch_size)
        return learning_rate_at(step, steps, self.settings) * self.progress.learning_rate_factor


def best_epoch(history: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return the epoch with the best validation metric; ties go to the lower loss, then first."""

    def merit(row: Mapping[str, float]) -> tuple[float, float]:
        value = -row["val_loss"] if metric == "loss" else row[f"val_{metric}"]
        return value, -row["val_loss"]

    return int(max(history, key=merit)["epoch"]) if history else 0


def validation_metrics(
    logits_NK: NDArray[np.float32], labels_N: NDArray[np.int64]
) -> dict[str, float]:
    """Return what an epoch's metrics say of the validation split."""
    predicted_N = logits_NK.argmax(axis=1)
    confusion_KK = confusion_matrix(labels_N, predicted_N, logits_NK.shape[1])
    return {
        "val_loss": negative_log_likelihood(logits_NK, labels_N),
        "val_accuracy": float((predicted_N == labels_N).mean()),
        "val_macro_f1": macro_f1(confusion_KK),
    }


def _seed_dropout(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Make dropout, which draws from the default generator, a function of (seed, step, rank).

    Only the generator of `device` is set; torch.manual_seed would set those of all devices.
    """
    on_gpu = device.type == "cuda"
    generator = (
        torch.cuda.default_generators[torch.cuda.current_device()]
        if on_gpu
        else torch.default_generator
    )
    sequence = np.random.SeedSequence((seed, step, 2), spawn_key=(rank,) if rank else ())
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
