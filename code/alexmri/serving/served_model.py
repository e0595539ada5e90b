"""The one model of a server process: loaded in the background, proven, warmed up, batched."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexmri.contract.failure import log_failure
from alexmri.contract.resources import cpu_cores
from alexmri.data.pixels import Pixels
from alexmri.serving.answers import Forecast
from alexmri.serving.batcher import Batcher, Costs
from alexmri.serving.options import Options
from alexmri.serving.request_error import RequestError, too_late
from alexmri.serving.states import Board, State
from alexmri.serving.telemetry import Telemetry

if TYPE_CHECKING:
    # At run time the loading thread imports it, and torch with it, after the server has forked.
    from alexmri.model.predictor import Predictor

# A worker that leaves with this code makes gunicorn give up instead of starting it over and over.
WORKER_CANNOT_START = 3
# Beyond 64 a forward pass of this network gains little on a CPU (docs/serving.md has the table).
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Pictures inside the server, all processes together: with 64 clients that ask one after another
# nothing is refused, and with any number of them an answer takes at most half as long again.
INSIDE = 96
# Where they take less than this, more; but fewer than threads, so that some are left to refuse.
SECONDS_INSIDE, MOST_INSIDE = 0.03, 192


class ServedModel:
    """A model that may still be on its way; `batcher` is None until it can answer."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.folder = folder
        self.options = options or Options()
        self.telemetry = Telemetry(self.options)
        self.state = State.LOADING
        self.predictor: Predictor | None = None
        self.batcher: Batcher[Forecast] | None = None
        self._board = Board(1)
        self._place = 0
        self._explaining = threading.Lock()

    @property
    def is_up(self) -> bool:
        """Whether this process can answer, and every other has been able to."""
        return self.state is State.READY and self._board.is_up()

    def load_in_background(self, board: Board, place: int, threads: int) -> None:
        """Start loading, for `place` on the board and with so many threads in a forward pass.

        A model that cannot be loaded ends the server with its reason. The port is open meanwhile,
        so that a health check gets an answer and not silence.
        """
        self._board, self._place = board, place

        def load() -> None:
            try:
                self.load(threads)
            except Exception as error:
                # Python cannot import while it ends: no reason to call the end a failure.
                if self.state is not State.DRAINING:
                    self.fail(error)

        threading.Thread(target=load, name="load-model", daemon=True).start()

    def load(self, threads: int | None = None) -> None:
        """Load the model, prove it by its stored example, and time every size of batch.

        Raises:
            UserError: as by `load_bundle`.
        """
        import torch

        from alexmri.model.predictor import Predictor

        torch.set_num_threads(threads or cpu_cores())
        self.predictor = Predictor.load(self.folder)
        probe = self._pictures(1)
        costs = self._warm_up()
        self.batcher = Batcher(
            self._forward,
            probe,
            costs,
            capacity=min(
                max(INSIDE // self._board.places, costs.pictures_within(SECONDS_INSIDE)),
                MOST_INSIDE,
            ),
            delay_s=self.options.batch_delay_s,
            on_death=self.fail,
            on_batch=self.telemetry.batch,
        )
        self.telemetry.model(self.predictor.bundle.version, self.batcher)
        if self.state is State.LOADING:
            self.state = State.READY
        self._board.tell_ready(self._place)
        table = ", ".join(f"{size}: {s * 1000:.1f}" for size, s in costs.timed.items())
        print(f"process {self._place} is ready; milliseconds by batch size: {table}", flush=True)
        if self._board.is_up():
            print(f"model of {self.folder} is loaded: ready", flush=True)

    def require_ready(self) -> "tuple[Predictor, Batcher[Forecast]]":
        """Return what answers.

        Raises:
            RequestError: 503, the server is loading or draining.
        """
        if self.state is State.DRAINING:
            raise RequestError(503, "draining", "the server is about to end; ask another", 1)
        if self.predictor is None or self.batcher is None or self.state is not State.READY:
            raise RequestError(503, "not_ready", "the model is still being loaded; try again", 2)
        return self.predictor, self.batcher

    def explain(
        self,
        predictor: "Predictor",
        pixels_NCHW: Pixels,
        forecast: Forecast,
        deadline: float,
    ) -> list[bytes]:
        """Return for each picture a PNG that shows where its label was seen.

        One picture at a time, whoever asks: each costs as much as the answers for several.

        Raises:
            RequestError: 503 they are not there at `deadline` (monotonic clock).
        """
        overlays: list[bytes] = []
        for pixels_CHW, row_K in zip(pixels_NCHW, forecast.probabilities_NK, strict=True):
            with self._explaining:
                if time.monotonic() > deadline:
                    raise too_late()
                overlays.append(predictor.gradcam_png(pixels_CHW, int(row_K.argmax())))
        return overlays

    def drain(self) -> None:
        """Refuse new requests from now on; those under way go on."""
        self.state = State.DRAINING

    def share_connections(self, count: int) -> int:
        """Tell the other processes of `count` connections; return the fewest that one of them has.

        A process that cannot answer, the successor of one that died, asks for none.
        """
        self._board.tell_connections(self._place, count if self.is_up else Board.NO_MORE)
        return self._board.fewest_connections()

    def fail(self, error: BaseException) -> None:
        """End the server with the reason: without a model no process of it is of use."""
        self.state = State.FAILED
        self.telemetry.flush()
        # Another process that is about to tell the same is not to be ended before it has: its own
        # end ends this one.
        if self._board.has_the_word():
            log_failure(error)
            os._exit(WORKER_CANNOT_START)

    def _forward(self, pixels_NCHW: Pixels) -> Forecast:
        assert self.predictor is not None  # noqa: S101
        prediction = self.predictor.predict(pixels_NCHW)
        return Forecast(prediction.probabilities_NK, prediction.unlike_training_N)

    def _pictures(self, count: int) -> Pixels:
        assert self.predictor is not None  # noqa: S101
        bundle = self.predictor.bundle
        return np.zeros((count, bundle.channels, bundle.image_size, bundle.image_size), np.uint8)

    def _warm_up(self) -> Costs:
        """Time each size of batch, so that none is computed for the first time for a client."""
        largest = self.options.largest_batch or BATCH_SIZES[-1]
        sizes = [*(size for size in BATCH_SIZES if size < largest), largest]
        return Costs({size: _seconds_of(self._forward, self._pictures(size)) for size in sizes})


def _seconds_of(forward: Callable[[Pixels], Forecast], pixels_NCHW: Pixels) -> float:
    """Return the time of a forward pass after a first one, which prepares what later ones reuse."""
    forward(pixels_NCHW)
    began = time.perf_counter()
    forward(pixels_NCHW)
    return time.perf_counter() - began
