"""The one model of a server process: loaded in the background, proven, warmed up, batched."""

import bisect
import gc
import os
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexmri.contract.failure import log_failure
from alexmri.contract.resources import cpu_cores, step_back
from alexmri.data.pixels import Pixels
from alexmri.serving.answers import Forecast
from alexmri.serving.batcher import Batcher, Costs
from alexmri.serving.cores import Cores, stay_on
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
# A batch between two sizes is filled up: each size that oneDNN meets costs it 2.5 MB for good, and
# the first batch of that size some ten milliseconds.
BATCH_SIZES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64)
# Of these the time is taken, and that of the others lies between: a start shall be short.
TIMED_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Pictures inside the server, all processes together: with 64 clients that ask one after another
# nothing is refused (connections are spread evenly enough), and with any number of them an answer
# takes little longer.
INSIDE = 72
# Or as many as take this long, with what a picture costs beside its part of a forward pass.
SECONDS_INSIDE, SECONDS_BESIDES = 0.03, 0.0005


class ServedModel:
    """A model that may still be on its way; `batcher` is None until it can answer."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.folder = folder
        self.options = options or Options()
        self.telemetry = Telemetry(self.options)
        largest = self.options.largest_batch or BATCH_SIZES[-1]
        self._sizes = [*(size for size in BATCH_SIZES if size < largest), largest]
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

    def load_in_background(
        self, board: Board, place: int, threads: int, cores: Iterable[int]
    ) -> None:
        """Start loading, for `place` on the board.

        A forward pass has so many threads while other processes compute; all `cores` while none
        does.

        A model that cannot be loaded ends the server with its reason. The port is open meanwhile,
        so that a health check gets an answer and not silence.
        """
        self._board, self._place = board, place

        def load() -> None:
            try:
                # The model's threads come from this one.
                step_back()
                # This thread alone: PyTorch counts its cores as it is imported.
                stay_on(cores)
                self._prepare(threads)
                # What is there now stays: PyTorch's objects alone cost the garbage collector 120 ms
                # each time it went through all, and every thread waited for it.
                gc.freeze()
                self._begin()
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
        self._prepare(threads or cpu_cores())
        self._begin()

    def _prepare(self, own: int) -> None:
        import torch

        from alexmri.model.predictor import Predictor

        torch.set_num_threads(own)
        self.predictor = Predictor.load(self.folder)
        probe = self._pictures(1)
        costs = self._warm_up()
        cores = Cores(
            self._board,
            self._place,
            own=own,
            most=own if torch.cuda.is_available() else cpu_cores(),
            set_threads=torch.set_num_threads,
            costs=costs,
        )
        self.batcher = Batcher(
            partial(cores.run, self._forward),
            probe,
            costs,
            prepare=partial(cores.settle, self._forward, probe),
            capacity=max(
                INSIDE // self._board.places,
                costs.pictures_within(SECONDS_INSIDE, SECONDS_BESIDES),
            ),
            delay_s=self.options.batch_delay_s,
            on_death=self.fail,
            on_batch=self.telemetry.batch,
        )
        self.telemetry.model(self.predictor.bundle.version, self.batcher)

    def _begin(self) -> None:
        assert self.batcher is not None  # noqa: S101
        if self.state is State.LOADING:
            self.state = State.READY
        self._board.tell_ready(self._place)
        table = ", ".join(f"{size}: {s * 1000:.1f}" for size, s in self.batcher.costs.timed.items())
        print(f"process {self._place} is ready; milliseconds by batch size: {table}", flush=True)
        if self._board.is_up():
            print(f"model of {self.folder} is loaded: ready", flush=True)

    def require_ready(self, *, under_way: bool = False) -> "tuple[Predictor, Batcher[Forecast]]":
        """Return what answers; while the server drains, what was `under_way` before.

        Raises:
            RequestError: 503, the server is loading or draining.
        """
        if self.state is State.DRAINING and not under_way:
            raise RequestError(503, "draining", "the server is about to end; ask another", 1)
        able = self.state in (State.READY, State.DRAINING)
        if self.predictor is None or self.batcher is None or not able:
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
        largest = self._sizes[-1]
        predictions = [
            self.predictor.predict(self._filled(pixels_NCHW[start : start + largest]))
            for start in range(0, len(pixels_NCHW), largest)
        ]
        ood = [each.ood_percentile_N for each in predictions if each.ood_percentile_N is not None]
        return Forecast(
            np.concatenate([each.probabilities_NK for each in predictions])[: len(pixels_NCHW)],
            np.concatenate(ood)[: len(pixels_NCHW)] if ood else None,
        )

    def _filled(self, pixels_NCHW: Pixels) -> Pixels:
        """Return a batch with black pictures after its own, up to the next size."""
        count = len(pixels_NCHW)
        size = self._sizes[bisect.bisect_left(self._sizes, count)]
        if size == count:
            return pixels_NCHW
        return np.concatenate([pixels_NCHW, self._pictures(size - count)])

    def _pictures(self, count: int) -> Pixels:
        assert self.predictor is not None  # noqa: S101
        bundle = self.predictor.bundle
        return np.zeros((count, bundle.channels, bundle.image_size, bundle.image_size), np.uint8)

    def _warm_up(self) -> Costs:
        """Compute each size of batch, so that none is met for the first time for a client."""
        for size in self._sizes:
            self._forward(self._pictures(size))
        largest = self._sizes[-1]
        return Costs(
            {size: self._seconds(size) for size in self._sizes if size in (*TIMED_SIZES, largest)}
        )

    def _seconds(self, count: int) -> float:
        pixels_NCHW = self._pictures(count)
        began = time.perf_counter()
        self._forward(pixels_NCHW)
        return time.perf_counter() - began
