"""What the parts of bench/gpu.py have in common: the data, the engine on it, a trained model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine import Bench

TINY_SUBJECTS, TINY_SLICES = {"MildDemented": 3, "NonDemented": 3}, 16
TINY_OPTIONS = ("--deterministic", "--epochs", "4")
ROUNDS, TINY_ROUNDS = 3, 1

Figures = dict[str, Any]


@dataclass
class Check:
    """What the parts have in common."""

    chosen: Path | None
    scratch: Path
    tiny: bool

    @property
    def rounds(self) -> int:
        """How often a speed is measured."""
        return TINY_ROUNDS if self.tiny else ROUNDS

    @property
    def options(self) -> tuple[str, ...]:
        """The options of the whole default training; the tiny one can be compared with others."""
        return TINY_OPTIONS if self.tiny else ()

    @cached_property
    def data(self) -> Path:
        if self.chosen:
            return self.chosen
        from alexmri.data.phantom import DEMO_SUBJECTS, SLICES, write_demo_data

        folder = self.scratch / "slices"
        subjects, slices = (TINY_SUBJECTS, TINY_SLICES) if self.tiny else (DEMO_SUBJECTS, SLICES)
        images = write_demo_data(folder, subjects=subjects, slices=slices)
        print(f"no --data: {images} synthetic slices are used", flush=True)
        return folder

    @cached_property
    def bench(self) -> "Bench":
        import torch
        from engine import Bench

        from alexmri.contract.resources import ask_for_large_pages, cpu_cores

        ask_for_large_pages()
        torch.set_num_threads(cpu_cores())
        return Bench.of(self.data, self.scratch)

    @property
    def out_folder(self) -> Path:
        """Where the default training writes."""
        return self.scratch / "default"

    @cached_property
    def model(self) -> Path:
        """The model of the default training; where that left none, of a short one."""
        from engine import train

        folder = self.out_folder / "model"
        if not (folder / "model.json").is_file():
            options = self.options or ("--epochs", "1")
            out = self.scratch / "short"
            folder = train(self.data, self.scratch, *options, out=out) / "model"
        return folder
