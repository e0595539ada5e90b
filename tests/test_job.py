"""The journey of a job where something goes wrong on its way: memory, signals, the last upload."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from alexmri.contract.signals import Stopped, StopRequest
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal
from alexmri.training import job, loop
from alexmri.training.job import Job, Outcome, run_job

pytestmark = pytest.mark.slow

TINY = {"epochs": 2, "batch_size": 16, "wandb_mode": "disabled", "seed": 3, "precision": "fp32"}


def job_of(data: Path, out: Path, **changes: Any) -> Job:
    settings = resolve([Layer("test", TINY | changes)]).settings
    return Job({"train": data}, settings, out, out / "model", out / "checkpoints")


def run(data: Path, out: Path, stop: StopRequest | None = None, **changes: Any) -> Outcome:
    return run_job(
        job_of(data, out, **changes),
        PlainTerminal(),
        StopRequest() if stop is None else stop,
        model_when_stopped=True,
    )


@pytest.mark.parametrize(
    "place",
    [(loop, "train_step"), (loop, "predict_logits"), (job, "build")],
    ids=["a step", "validation", "the network"],
)
@pytest.mark.parametrize("size", [16, 2])
def test_a_gpu_out_of_memory_is_one_sentence_wherever_it_happens(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, size: int
) -> None:
    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(*place, out_of_memory)
    fits = "batch_size 8" if size == 16 else "a smaller image_size"
    with pytest.raises(
        UserError,
        match=f"the GPU is out of memory at batch_size {size} .*; {fits} is likely to fit",
    ):
        run(demo, tmp_path, batch_size=size, epochs=1)


def test_the_first_epoch_tells_how_long_the_others_will_take(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(demo, tmp_path, epochs=3)
    lines = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(lines) if line.endswith(" to go")]
    assert len(told) == 1
    assert lines[told[0] - 1].startswith("epoch=1;")


def test_a_signal_during_the_last_upload_leaves_a_finished_run(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last metric line once was missing, and a command to resume was printed in vain."""

    def interrupted(*args: Any) -> None:
        raise Stopped

    monkeypatch.setattr(job.WandbSink, "finish", interrupted)
    outcome = run(demo, tmp_path, epochs=1)
    assert not outcome.stopped
    assert outcome.report == tmp_path / "report.html"
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is True
    printed = capsys.readouterr().out
    assert re.search(r"^epoch=1; .*test_macro_f1=", printed, re.MULTILINE)
    assert "`wandb sync` sends the rest" in printed


class StopInTheLastSecondsOfTheBudget(StopRequest):
    """Comes within an epoch, when the seconds of the budget are nearly used up."""

    run: loop.Run | None = None

    def __bool__(self) -> bool:
        if self.run and self.run.progress.epoch == 2 and self.run.progress.step_in_epoch == 1:
            self.run.progress.seconds = 1e9
            self.signal = signal.SIGTERM
        return self.signal is not None


def test_a_stop_within_an_epoch_never_finishes_a_run_with_a_time_budget(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopInTheLastSecondsOfTheBudget()

    class Watched(loop.Run):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            stop.run = self

    monkeypatch.setattr(job, "Run", Watched)
    outcome = run(demo, tmp_path, stop, epochs=20, time_budget_seconds=1e6)
    assert outcome.stopped
    assert json.loads((tmp_path / "run.json").read_text())["finished"] is False
