"""The model every serving peer answers with: the bundle of the server itself, loaded the same way.

The settings of a peer are the JSON in $BENCH_SERVER; see bench/server.py.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexmri.data.pixels import Pixels
from alexmri.model.predictor import Predictor, ranked

SETTINGS: dict[str, Any] = json.loads(os.environ.get("BENCH_SERVER", "{}"))


class Model:
    """Images to answers, in the steps that a server may divide among its processes."""

    def __init__(self, max_batch_size: int = 1) -> None:
        torch.set_num_threads(SETTINGS["threads"])
        self._predictor = Predictor.load(Path(SETTINGS["bundle"]))
        self.decode = self._predictor.pixels
        bundle = self._predictor.bundle
        shape = (bundle.channels, bundle.image_size, bundle.image_size)
        for size in (1, max_batch_size) * 3:  # the warm-up
            self.forward([np.zeros(shape, np.uint8)] * size)

    def forward(self, pixels: Sequence[Pixels]) -> list[dict[str, Any]]:
        """Return the answer for each image by one forward pass, as the server computes it."""
        probabilities_NK = self._predictor.predict(np.stack(pixels)).probabilities_NK
        rankings = (ranked(self._predictor.bundle.classes, row_K) for row_K in probabilities_NK)
        return [{"label": next(iter(ranking)), "probabilities": ranking} for ranking in rankings]

    def answer(self, image: bytes) -> dict[str, Any]:
        return self.forward([self.decode(image)])[0]
