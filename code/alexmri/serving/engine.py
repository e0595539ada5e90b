"""The one model of a server process: loaded in the background, proven, warmed up, batched."""

import bisect
import gc
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from alexmri.contract.failure import log_failure
from alexmri.contract.resources import cpu_cores
from alexmri.data.pixels import Pixels
from alexmri.errors import UserError
from alexmri.serving import shared
from alexmri.serving.batcher import Batcher, LatencyModel
from alexmri.serving.config import Config
from alexmri.serving.metrics import Metrics
from alexmri.serving.request_error import RequestError, too_late

if TYPE_CHECKING:
    # At run time the loading thread imports it, and torch with it, after the server has forked.
    from alexmri.model.predictor import Predictor

# A worker that leaves with this code makes gunicorn give up instead of starting it over and over.
WORKER_CANNOT_START = 3
# Beyond 64 a forward pass of this network gains little on a CPU. A batch between two sizes is
# filled up: each size that oneDNN meets costs it 2.5 MB for good, and the first batch of that size
# some ten milliseconds.
BATCH_SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64)
# Of these the time is taken, and that of the others lies between: a start shall be short.
TIMED_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Images in flight in one process: with 64 clients that ask one after another nothing is refused,
# and with any number of them an answer takes little longer.
MAX_IN_FLIGHT = 72
# Or as many as take this long, with what an image costs beside its part of a forward pass.
MAX_IN_FLIGHT_S, OVERHEAD_S = 0.03, 0.0005


class State(Enum):
    """The states of one process, in the order in which it goes through them."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Predictions:
    """What the model says about N images.

    Attributes:
        probabilities_NK: calibrated; classes in the order of the model.
        ood_percentile_N: 0 to 1; None where the model has no such score.
    """

    probabilities_NK: NDArray[np.float64]
    ood_percentile_N: NDArray[np.float64] | None

    @classmethod
    def none(cls, classes: int) -> "Predictions":
        """Return what there is to say about no image."""
        return cls(np.empty((0, classes)), None)

    def __getitem__(self, rows: slice) -> "Predictions":
        ood_N = self.ood_percentile_N
        return Predictions(self.probabilities_NK[rows], None if ood_N is None else ood_N[rows])


class Engine:
    """A model that may still be on its way; `batcher` is None until it can answer."""

    def __init__(self, folder: Path, config: Config | None = None) -> None:
        self.folder = folder
        self.config = config or Config()
        self.metrics = Metrics(self.config)
        max_size = self.config.max_batch_size or BATCH_SIZES[-1]
        self._sizes = [*(size for size in BATCH_SIZES if size < max_size), max_size]
        self.state = State.LOADING
        self.predictor: Predictor | None = None
        self.batcher: Batcher[Predictions] | None = None
        self._up = False
        self._explaining = threading.Lock()

    def load_in_background(self) -> None:
        """Start loading.

        A model that cannot be loaded ends the server with its reason. The port is open meanwhile,
        so that a health check gets an answer and not silence.
        """

        def load() -> None:
            try:
                self.load(int(os.environ["OMP_NUM_THREADS"]))
            except Exception as error:
                # Python cannot import while it ends: no reason to call the end a failure.
                if self.state is not State.DRAINING:
                    self.fail(error)

        threading.Thread(target=load, name="load-model", daemon=True).start()

    def load(self, threads: int | None = None) -> None:
        """Load the model, prove it by its stored example, and time every size of batch.

        Raises:
            UserError: as by `load_bundle`; or the folder holds another model than the one that the
                other processes serve.
        """
        import torch

        from alexmri.model.predictor import Predictor

        torch.set_num_threads(threads or cpu_cores())
        self.predictor = Predictor.load(self.folder)
        version = self.predictor.bundle.version
        if (served := shared.agreed_version(version)) != version:
            raise UserError(
                f"{self.folder} holds model {version} now, and this server serves {served}; start"
                " the server anew (or send SIGHUP to its first process) to serve the new one"
            )
        latency = self._warm_up()
        self.batcher = Batcher(
            self._forward,
            self._blank_images(1),
            latency,
            capacity=max(MAX_IN_FLIGHT, latency.images_within(MAX_IN_FLIGHT_S, OVERHEAD_S)),
            delay_s=self.config.batch_delay_s,
            on_death=self.fail,
            on_batch=self.metrics.batch,
        )
        self.metrics.model(version, self.batcher)
        # What is there now stays: PyTorch's objects alone cost the garbage collector 120 ms each
        # time it went through all, and every thread waited for it.
        gc.freeze()
        if self.state is State.LOADING:
            self.state = State.READY
        shared.tell_ready()
        table = ", ".join(f"{size}: {s * 1000:.1f}" for size, s in latency.timed.items())
        print(
            f"process {os.getpid()} is ready: model {version} of {self.folder};"
            f" milliseconds by batch size: {table}",
            flush=True,
        )

    def may_accept(self) -> bool:
        """Whether this process shall accept connections: unless only another one can answer."""
        if self.state is not State.LOADING:
            return True
        refusing = not shared.does_another_answer()
        shared.tell_refusing(refusing=refusing)
        return refusing

    @property
    def has_room(self) -> bool:
        """Whether a request that comes now would be answered."""
        return self.batcher is not None and not self.batcher.is_full

    def require_up(self) -> None:
        """Refuse to call the server ready while any of its processes would refuse a request.

        Raises:
            RequestError: 503, the server is loading or draining.
        """
        self.require_ready()
        if not self._up and shared.does_any_refuse():
            raise not_ready()
        self._up = True

    def require_ready(self) -> "tuple[Predictor, Batcher[Predictions]]":
        """Return what answers.

        Raises:
            RequestError: 503, the server is loading or draining.
        """
        if self.state is State.DRAINING:
            raise RequestError(503, "draining", "the server is shutting down; ask another one", 1)
        if self.predictor is None or self.batcher is None or self.state is not State.READY:
            raise not_ready()
        return self.predictor, self.batcher

    def explain(
        self, pixels_NCHW: Pixels, predictions: Predictions, deadline: float
    ) -> Sequence[bytes]:
        """Return for each image a PNG that shows where its label was seen.

        One image at a time, whoever asks: each costs as much as the answers for several.

        Raises:
            RequestError: 503 they are not there at `deadline` (monotonic clock).
        """
        assert self.predictor is not None  # noqa: S101 - it has made the predictions
        overlays: list[bytes] = []
        for pixels_CHW, row_K in zip(pixels_NCHW, predictions.probabilities_NK, strict=True):
            with self._explaining:
                if time.monotonic() > deadline:
                    raise too_late()
                overlays.append(self.predictor.gradcam_png(pixels_CHW, int(row_K.argmax())))
        return overlays

    def drain(self) -> None:
        """Refuse new requests from now on; those in flight go on."""
        self.state = State.DRAINING

    def fail(self, error: BaseException) -> None:
        """End the server with the reason: without a model no process of it is of use."""
        self.state = State.FAILED
        # Another process that reports the same is not to be ended before it has: its own end ends
        # this one.
        if shared.claim_failure_report():
            log_failure(error)
            os._exit(WORKER_CANNOT_START)

    def _forward(self, pixels_NCHW: Pixels) -> Predictions:
        assert self.predictor is not None  # noqa: S101
        max_size = self._sizes[-1]
        parts = [
            self.predictor.predict(self._filled(pixels_NCHW[start : start + max_size]))
            for start in range(0, len(pixels_NCHW), max_size)
        ]
        scores = [each.ood_percentile_N for each in parts if each.ood_percentile_N is not None]
        return Predictions(
            np.concatenate([each.probabilities_NK for each in parts])[: len(pixels_NCHW)],
            np.concatenate(scores)[: len(pixels_NCHW)] if scores else None,
        )

    def _filled(self, pixels_NCHW: Pixels) -> Pixels:
        """Return a batch with black images after its own, up to the next size."""
        count = len(pixels_NCHW)
        size = self._sizes[bisect.bisect_left(self._sizes, count)]
        if size == count:
            return pixels_NCHW
        return np.concatenate([pixels_NCHW, self._blank_images(size - count)])

    def _blank_images(self, count: int) -> Pixels:
        assert self.predictor is not None  # noqa: S101
        bundle = self.predictor.bundle
        return np.zeros((count, bundle.channels, bundle.image_size, bundle.image_size), np.uint8)

    def _warm_up(self) -> LatencyModel:
        """Compute each size of batch, so that none is met for the first time for a client."""
        for size in self._sizes:
            self._forward(self._blank_images(size))
        max_size = self._sizes[-1]
        return LatencyModel(
            {size: self._seconds(size) for size in self._sizes if size in (*TIMED_SIZES, max_size)}
        )

    def _seconds(self, count: int) -> float:
        pixels_NCHW = self._blank_images(count)
        began = time.perf_counter()
        self._forward(pixels_NCHW)
        return time.perf_counter() - began


def not_ready() -> RequestError:
    """Return the error of a request that came before the model was loaded."""
    return RequestError(503, "not_ready", "the model is still being loaded; try again", 2)
