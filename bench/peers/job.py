"""What every training peer is asked: a network, images, a recipe; and how it is timed."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
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
        names = ("image_size", "channels", "dropout", "seed")
        wanted = {name: self.settings[name] for name in names}
        return build(classes=self.classes, **wanted).to(self.device)

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Give batches (images, labels), over and over; answer once enough steps were taken."""
        step = images = 0
        started = 0.0
        while True:
            for batch in batches:
                if step == WARMUP_STEPS:
                    started = self._now()
                yield batch
                step += 1
                images += len(batch[1]) if step > WARMUP_STEPS else 0
                if step == WARMUP_STEPS + self.steps:
                    answer(images_per_second=images / (self._now() - started))
                    return

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def answer(**figures: float) -> None:
    """Print the result, as the last line of standard output."""
    print(json.dumps(figures), flush=True)
