"""What bench/train.py and bench/gpu.py measure: whole trainings, epochs, bare steps, and peers."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data import loader
from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Dataset, Part, Rows, load_dataset
from alexmri.model.alexnet import AlexNet, build
from alexmri.model.forward import Compute, choose_compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training.distributed import ALONE
from alexmri.training.loop import Run, train_step
from alexmri.training.state import State
from alexmri.training.step_graph import step_on

PEERS = Path(__file__).parent / "peers"
PEERS_INSTALLED = Path(__file__).parent / ".peers"
PEER_STEPS = 10
LIMIT_STEPS = 12
LARGE_IMAGES = 1_000_000
LARGE_STEPS = 24
COMMAND = [sys.executable, "-c", "from alexmri.cli import main; main()", "train"]
# The textbook and the peers stretch every image to the square: all are compared on these pixels.
WHOLE_IMAGE = {"center": "none", "intensity": "none"}


@dataclass(frozen=True)
class Bench:
    """A folder of class folders, loaded, its recipe, and a folder for temporary files."""

    data: Path
    scratch: Path
    settings: Settings
    compute: Compute
    dataset: Dataset

    @classmethod
    def of(cls, data: Path, scratch: Path, *, seed: int = 0, precision: str = "auto") -> "Bench":
        chosen = Layer("bench", {"seed": seed, "precision": precision, **WHOLE_IMAGE})
        settings, terminal = resolve([chosen]).settings, PlainTerminal()
        dataset = load_dataset({"train": data}, settings, workers=cpu_cores(), terminal=terminal)
        return cls(data, scratch, settings, choose_compute(settings.precision), dataset)

    def with_settings(self, **changes: Any) -> "Bench":
        """Return the same data under other settings; those that decide on its pixels stay."""
        settings = self.settings.model_copy(update=changes)
        return replace(self, settings=settings, compute=choose_compute(settings.precision))

    def network(self) -> AlexNet:
        network = build(
            classes=len(self.dataset.classes),
            image_size=self.settings.image_size,
            channels=self.settings.channels,
            dropout=self.settings.dropout,
            seed=self.settings.seed,
        )
        return network.to(self.compute.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]

    def run(self, train: Part | None = None, validation: Part | None = None) -> Run:
        """Return a run of the engine; without parts, on those of the data."""
        train = train or self.dataset.part("train")
        validation = validation or self.dataset.part("validation")
        augment = choose_augment(self.settings)
        return Run(self.network(), train, validation, self.settings, self.compute, augment)

    def epochs(
        self, train: Part | None = None, validation: Part | None = None
    ) -> Iterator[dict[str, float]]:
        """Train, and give the metrics of every epoch."""
        return self.run(train, validation).epochs(StopRequest(), PlainTerminal())

    def limit(self, steps: int = LIMIT_STEPS) -> float:
        """Return images/s of forward, backward and optimiser on one batch that stays."""
        settings, device = self.settings, self.compute.device
        state = State(self.network(), settings, self.compute)
        step = partial(
            train_step, state, class_weights_K=None, label_smoothing=settings.label_smoothing
        )
        step_once = step_on(device, step, ALONE)
        shape = (settings.batch_size, settings.channels, settings.image_size, settings.image_size)
        pixels_NCHW = torch.randint(256, shape, dtype=torch.uint8).to(device)
        labels_N = torch.zeros(settings.batch_size, dtype=torch.int64, device=device)
        step_once(pixels_NCHW, labels_N, share=1.0)  # the warm-up
        started = now(device)
        for number in range(1, steps + 1):
            step_once(pixels_NCHW, labels_N, share=1.0)
            if state.average:
                state.average.update(number)
        return settings.batch_size * steps / (now(device) - started)

    def large(self, images: int = LARGE_IMAGES, steps: int = LARGE_STEPS) -> dict[str, float]:
        """Train for a few steps on a million memory-mapped slices, reading them from disk."""
        side, share = self.settings.image_size, loader.MAX_MEMORY_SHARE
        path = Path(tempfile.mkdtemp(dir=self.scratch)) / "slices.npy"
        shape = (images, self.settings.channels, side, side)
        array_NCHW = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        generator = np.random.default_rng(0)
        for start in range(0, images, 10_000):
            block_NCHW = array_NCHW[start : start + 10_000]
            block_NCHW[:] = generator.integers(0, 256, block_NCHW.shape, dtype=np.uint8)
        array_NCHW.flush()
        mapped = array_NCHW.nbytes
        del array_NCHW
        rows = Rows(np.load(path, mmap_mode="r"), np.arange(images))
        labels_N = generator.integers(0, len(self.dataset.classes), images)
        loader.MAX_MEMORY_SHARE = 0.0
        run = self.run(Part(rows, labels_N, None, ("",) * images))
        seen: list[tuple[float, int]] = []

        def look() -> None:
            seen.append((now(self.compute.device), anonymous_memory()))

        list(run.epochs(AtSteps(run, {4: look, steps: look}), PlainTerminal()))
        loader.MAX_MEMORY_SHARE = share
        path.unlink()
        (started, memory), (ended, memory_after) = seen
        return {
            "images": float(images),
            "images_per_second": (steps - 4) * self.settings.batch_size / (ended - started),
            "memory_growth_mib": (memory_after - memory) / 2**20,
            "mapped_mib": mapped / 2**20,
        }

    def ask_peer(self, name: str, **wishes: Any) -> dict[str, float]:
        """Run a peer in a process of its own; see bench/peers/job.py.

        Raises:
            RuntimeError: the peer failed; with its last line.
        """
        folder, number = self.dataset.folder, self.dataset.classes.index
        job = {
            "images": [
                (str(image.path), number(image.label), split)
                for image, split in zip(folder.images, self.dataset.split.assigned, strict=True)
            ],
            "classes": len(self.dataset.classes),
            "settings": self.settings.model_dump(mode="json"),
            "threads": cpu_cores(),
            "steps": PEER_STEPS,
            **wishes,
        }
        request = self.scratch / "job.json"
        request.write_text(json.dumps(job))
        path = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(PEERS_INSTALLED)])
        done = subprocess.run(
            [sys.executable, PEERS / f"{name}.py", request],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path.strip(os.pathsep)},
        )
        if done.returncode:
            last_words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"{name}: {last_words[-1]}")
        figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return figures

    def speed_of_peer(self, name: str, **wishes: Any) -> float:
        return self.ask_peer(name, **wishes)["images_per_second"]


class AtSteps(StopRequest):
    """Calls something before some steps of a run, and stops the run at the last of them."""

    def __init__(self, run: Run, actions: Mapping[int, Callable[[], None]]) -> None:
        super().__init__(silent=True)
        self._run, self._actions, self._last = run, dict(actions), max(actions)

    def __bool__(self) -> bool:
        step = self._run.progress.step
        if step in self._actions:  # asked several times before the same step
            self._actions.pop(step)()
        return step >= self._last


def now(device: torch.device) -> float:
    """Return the time once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def anonymous_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def train_command(data: Path, out: Path, *options: str) -> list[str]:
    paths = ["--data", str(data), "--out", str(out), "--wandb-mode", "disabled"]
    return [*COMMAND, *paths, *options]


def train(data: Path, scratch: Path, *options: str, out: Path | None = None) -> Path:
    """Run `alexmri train` to its end; return the folder it wrote.

    Raises:
        RuntimeError: the training failed; with its last line.
    """
    out = out or Path(tempfile.mkdtemp(dir=scratch))
    done = subprocess.run(train_command(data, out, *options), capture_output=True, text=True)
    if done.returncode:
        last_words = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise RuntimeError(f"alexmri train: {' '.join(last_words)} (exit code {done.returncode})")
    return out


def train_interrupted(data: Path, scratch: Path, *options: str) -> Path:
    """Run `alexmri train`, stop it by SIGTERM after its first epoch, resume it; return its folder.

    A second signal has it save the checkpoint alone.

    Raises:
        RuntimeError: it failed, or ended before the signal came.
    """
    out = Path(tempfile.mkdtemp(dir=scratch))
    command = train_command(data, out, *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(("epoch=1;", "SIGTERM: stopping")):
                process.terminate()
    train(data, scratch, *options, out=out)
    if not list(out.glob("**/step-*.json")):
        raise RuntimeError("the training that was to be stopped had ended before: no checkpoint")
    return out


def train_to_the_end(
    data: Path, scratch: Path, *options: str, out: Path | None = None
) -> dict[str, float]:
    """Train with the default recipe; return its figures and how long it took."""
    started = time.perf_counter()
    out = train(data, scratch, *options, out=out)
    seconds = time.perf_counter() - started
    test = json.loads((out / "evaluation.json").read_text())["test"]
    return {
        "seconds": seconds,
        "training_seconds": json.loads((out / "run.json").read_text())["training_seconds"],
        "accuracy": test["accuracy"]["value"],
        "macro_f1": test["macro_f1"]["value"],
    }
