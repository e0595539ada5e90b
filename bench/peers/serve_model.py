"""The model every serving peer answers with: the bundle of the server itself, loaded the same way.

The settings of a peer are the JSON in $BENCH_SERVER; see bench/servers.py.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alexmri.data.pixels import Pixels
from alexmri.model.predictor import Predictor, ranked

SETTINGS: dict[str, Any] = json.loads(os.environ.get("BENCH_SERVER", "{}"))
WARMUP_PASSES = 3


def forward(predictor: Predictor, pixels_NCHW: Pixels) -> NDArray[np.float64]:
    """Return probabilities (N, K) by the arithmetic the server uses: the same for everyone."""
    return predictor.predict(pixels_NCHW).probabilities_NK


class Model:
    """Pictures to answers, in the three steps that a server may divide among its processes."""

    def __init__(self, threads: int, largest_batch: int = 1) -> None:
        torch.set_num_threads(threads)
        self._predictor = Predictor.load(Path(SETTINGS["bundle"]))
        bundle = self._predictor.bundle
        shape = (bundle.channels, bundle.image_size, bundle.image_size)
        for size in (1, largest_batch):
            for _ in range(WARMUP_PASSES):
                self.forward([np.zeros(shape, np.uint8)] * size)

    def decode(self, picture: bytes) -> Pixels:
        return self._predictor.pixels(picture)

    def forward(self, pixels: Sequence[Pixels]) -> list[dict[str, Any]]:
        """Return the answer for each picture by one forward pass."""
        probabilities_NK = forward(self._predictor, np.stack(pixels))
        rankings = (ranked(self._predictor.bundle.classes, row_K) for row_K in probabilities_NK)
        return [{"label": next(iter(ranking)), "probabilities": ranking} for ranking in rankings]

    def answer(self, picture: bytes) -> dict[str, Any]:
        return self.forward([self.decode(picture)])[0]
