"""The one model of a server process: loaded in the background, asked by one thread at a time."""

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexmri.contract.failure import log_failure
from alexmri.contract.resources import cpu_cores
from alexmri.data.pixels import Pixels

if TYPE_CHECKING:
    # At run time the loading thread imports it, and torch with it, after the server has forked.
    from alexmri.model.predictor import Predictor

# A worker that leaves with this code makes gunicorn give up instead of starting it over and over.
WORKER_CANNOT_START = 3


class ServedModel:
    """A model that may still be on its way; `predictor` is None until it can answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.predictor: Predictor | None = None
        self._turn = threading.Lock()

    def load_in_background(self) -> None:
        """Start loading; a model that cannot be loaded ends the server with its reason.

        The port is open meanwhile, so that a health check gets an answer and not silence.
        """
        threading.Thread(target=self._load_or_exit, name="load-model", daemon=True).start()

    def load(self) -> None:
        """Load the model and ask it once, so that the first request waits for nothing."""
        import torch

        from alexmri.model.predictor import Predictor

        torch.set_num_threads(cpu_cores())
        predictor = Predictor.load(self.folder)
        shape = (1, predictor.bundle.channels, *[predictor.bundle.image_size] * 2)
        predictor.probabilities(np.zeros(shape, dtype=np.uint8))
        self.predictor = predictor

    def rank(self, predictor: "Predictor", pixels_NCHW: Pixels) -> list[dict[str, float]]:
        """Return, for each picture, class -> calibrated probability, the most likely first.

        One forward pass at a time has all the cores; several would only wait for each other.
        """
        from alexmri.model.predictor import ranked

        with self._turn:
            probabilities_NK = predictor.probabilities(pixels_NCHW)
        return [ranked(predictor.bundle.classes, row_K) for row_K in probabilities_NK]

    def _load_or_exit(self) -> None:
        try:
            self.load()
        except Exception as error:
            log_failure(error)
            os._exit(WORKER_CANNOT_START)
        print(f"model of {self.folder} is loaded: ready", flush=True)
