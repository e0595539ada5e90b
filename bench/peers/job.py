"""What every peer is asked: a network, images, a recipe; and how its answer is timed and given."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexmri.model.alexnet import AlexNet, build

WARMUP_STEPS = 4


@dataclass(frozen=True)
class Job:
    """The request a peer reads from the JSON file named on its command line.

    `images` are rows of path, class number and split. Without `epochs` the peer trains for `steps`
    steps after a warm-up and is timed; with it, it trains to the end and is measured.
    """

    images: list[tuple[str, int, str]]
    classes: int
    settings: dict[str, Any]
    workers: int
    precision: str
    threads: int
    steps: int
    epochs: int | None = None

    @classmethod
    def read(cls) -> "Job":
        job = cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.settings["seed"])
        return job

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rows(self, split: str) -> list[tuple[str, int]]:
        return [(path, label) for path, label, of in self.images if of == split]

    def network(self) -> AlexNet:
        wanted = self.settings
        return build(
            classes=self.classes,
            image_size=wanted["image_size"],
            channels=wanted["channels"],
            dropout=wanted["dropout"],
            seed=wanted["seed"],
        ).to(self.device)


class Stopwatch:
    """Counts the images of the steps after the warm-up, and says when it has seen enough."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._images = 0
        self._started = 0.0

    def enough_after(self, images: int) -> bool:
        """Count a step of `images`; return whether the last one is done."""
        self._step += 1
        if self._step in (WARMUP_STEPS, WARMUP_STEPS + self._steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._step == WARMUP_STEPS:
            self._started = time.perf_counter()
        elif self._step > WARMUP_STEPS:
            self._images += images
        return self._step >= WARMUP_STEPS + self._steps

    @property
    def images_per_second(self) -> float:
        return self._images / (time.perf_counter() - self._started)


def answer(**figures: float) -> None:
    """Print the result, as the last line of standard output."""
    print(json.dumps(figures))
