"""What is measured: a data set, its recipe, and the arithmetic of this machine."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alexmri.contract.resources import cpu_cores
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.model.forward import Compute, choose_compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal


@dataclass(frozen=True)
class Bench:
    """`data` is a folder of class folders, `scratch` one for temporary files."""

    data: Path
    scratch: Path
    settings: Settings
    compute: Compute
    dataset: Dataset

    @property
    def classes(self) -> int:
        return len(self.dataset.classes)

    def with_settings(self, **changes: Any) -> "Bench":
        """Return the same data under other settings; those that decide on its pixels stay."""
        settings = self.settings.model_copy(update=changes)
        return replace(self, settings=settings, compute=choose_compute(settings.precision))


def bench_of(data: Path, scratch: Path, *, seed: int) -> Bench:
    settings = resolve([Layer("bench", {"seed": seed})]).settings
    terminal = PlainTerminal()
    dataset = load_dataset({"train": data}, settings, workers=cpu_cores(), terminal=terminal)
    return Bench(data, scratch, settings, choose_compute(settings.precision), dataset)
