"""A run that is stopped, resumed, changed or led astray, on a few random pictures."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alexmri.contract.signals import StopRequest
from alexmri.data.dataset import Part
from alexmri.errors import UserError
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute
from alexmri.settings import Layer, Settings, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training import loop
from alexmri.training.checkpoint import CheckpointWriter, load_newest
from alexmri.training.loop import Run

pytestmark = pytest.mark.slow

FEW = {"epochs": 3, "batch_size": 8, "augment": "none", "checkpoint_every_seconds": None}


def part(images: int, seed: int) -> Part:
    generator = np.random.default_rng(seed)
    pixels_NCHW = generator.integers(0, 256, (images, 1, 32, 32), dtype=np.uint8)
    return Part(pixels_NCHW, np.arange(images) % 2, None, ("",) * images)


def new_run(**changes: Any) -> Run:
    settings = resolve([Layer("test", FEW | changes)]).settings
    network = build(classes=2, image_size=32, channels=1, dropout=0.2, seed=0)
    return Run(network, part(20, 0), part(6, 1), settings, CPU, None)


CPU = Compute(torch.device("cpu"), "fp32")


def resume_check(settings: Settings) -> dict[str, Any]:
    return {"settings": settings.model_dump(mode="json"), "data": "x", "split": "y"}


def go_on(run: Run, folder: Path, stop: StopRequest | None = None) -> list[dict[str, float]]:
    writer = CheckpointWriter(folder, resume_check(run.settings), keep=2)
    stop = StopRequest() if stop is None else stop
    rows = list(run.epochs(stop, PlainTerminal(), writer))
    writer.wait()
    return rows


def resumed(folder: Path, **changes: Any) -> Run:
    run = new_run(**changes)
    checkpoint = load_newest(folder, pytest.fail)
    assert checkpoint is not None
    run.restore(checkpoint)
    return run


def without_speed(rows: Iterable[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in run.state.best_network().state_dict().items()}


class StopAtStep(StopRequest):
    """Asks to stop at the given reading."""

    def __init__(self, readings: int) -> None:
        super().__init__()
        self._left = readings

    def __bool__(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 8])
@pytest.mark.parametrize("ema_decay", [0, 0.9])
def test_a_run_stopped_at_any_step_ends_as_if_it_had_not_been(
    tmp_path: Path, steps: int, ema_decay: float
) -> None:
    whole = new_run(ema_decay=ema_decay)
    rows = go_on(whole, tmp_path / "whole")
    stopped = new_run(ema_decay=ema_decay)
    first = go_on(stopped, tmp_path / "stopped", StopAtStep(steps))
    again = resumed(tmp_path / "stopped", ema_decay=ema_decay)
    second = go_on(again, tmp_path / "stopped")
    assert without_speed(first + second) == without_speed(rows)
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


class Patient(CheckpointWriter):
    """Is never busy: the next step waits."""

    @property
    def busy(self) -> bool:
        self.wait()
        return False


def test_a_run_killed_after_any_checkpoint_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    often = {"checkpoint_every_seconds": 1e-9, "epochs": 2}
    whole = new_run(**often)
    writer = Patient(tmp_path / "all", resume_check(whole.settings), keep=99)
    rows = without_speed(whole.epochs(StopRequest(), PlainTerminal(), writer))
    writer.wait()
    saved = sorted((tmp_path / "all").glob("*.json"))
    assert len(saved) == 6  # before every step
    for document in saved:
        alone = tmp_path / document.stem
        alone.mkdir()
        for path in (document, document.with_suffix(".safetensors")):
            shutil.copy(path, alone)
        again = resumed(alone, **often)
        assert without_speed([*again.progress.history, *go_on(again, alone)]) == rows
        assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_checkpoints_by_time_come_within_an_epoch(tmp_path: Path) -> None:
    run = new_run(checkpoint_every_seconds=1e-9, epochs=1)
    writer = Patient(tmp_path, resume_check(run.settings), keep=9)
    list(run.epochs(StopRequest(), PlainTerminal(), writer))
    writer.wait()
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.progress.epoch == 1
    assert found.progress.step_in_epoch > 0
    assert found.progress.loss_sum > 0


def astray(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> list[int]:
    """Let the loss be NaN at the given calls of the training step; return the list of calls."""
    calls: list[int] = []
    real = loop.train_step

    def step(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        loss, right = real(*args, **kwargs)
        calls.append(len(calls))
        return (loss * float("nan") if calls[-1] in steps else loss), right

    monkeypatch.setattr(loop, "train_step", step)
    return calls


@pytest.mark.parametrize(("step", "where"), [(1, "the start"), (4, "epoch 1")])
def test_a_loss_that_is_no_number_goes_back_and_on_more_slowly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
    where: str,
) -> None:
    astray(monkeypatch, {step})
    run = new_run(schedule="constant")
    rows = go_on(run, tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["learning_rate"] == pytest.approx(0.3 * run.settings.learning_rate)
    assert f"going back to the weights of {where}" in capsys.readouterr().out
    assert all(torch.isfinite(value).all() for value in weights(run).values())


def test_after_two_recoveries_it_gives_up_and_no_best_model_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    astray(monkeypatch, {4, 6, 8, 10, 12})
    run = new_run()
    with pytest.raises(UserError, match=r"not a finite number in epoch 2, even with 0\.09 times"):
        go_on(run, tmp_path)
    assert run.progress.best_epoch == 1


def test_a_time_budget_is_not_over_within_an_epoch(tmp_path: Path) -> None:
    """A stop in the last seconds of the budget once made run.json say that the run is finished."""
    budget = {"time_budget_seconds": 100, "epochs": 20}
    run = new_run(**budget)
    run.progress.epoch, run.progress.step = 9, 8 * 3 + 2
    run.progress.step_in_epoch, run.progress.seconds = 2, 89.0
    assert not run.is_over()
    run.progress.epoch, run.progress.step_in_epoch = 10, 0
    assert not run.is_over()
    run.progress.seconds = 95.0
    assert run.is_over()


def test_other_settings_can_be_gone_on_with(tmp_path: Path) -> None:
    go_on(new_run(), tmp_path, StopAtStep(4))
    changed = resumed(
        tmp_path, batch_size=4, optimizer="adamw", learning_rate=1e-4, ema_decay=0.9, epochs=4
    )
    assert changed.progress.epoch == 2
    assert changed.progress.step_in_epoch == 0
    assert changed.progress.step == 5
    rows = go_on(changed, tmp_path)
    assert [row["epoch"] for row in rows] == [2, 3, 4]
