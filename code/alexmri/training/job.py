"""The whole journey of a training job: from folders of slices to a model, a report, figures."""

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from alexmri.contract.metric_lines import metric_line
from alexmri.contract.resources import ask_for_large_pages, cpu_cores
from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.audit import Comparison, audit
from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.data.split import Fold
from alexmri.errors import UserError
from alexmri.evaluation.metrics import find_negative_class
from alexmri.files import make_writable, remove_leftovers, write_json
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute, choose_compute
from alexmri.model.onnx import require_onnx
from alexmri.settings import Settings
from alexmri.terminal import Terminal, number_of
from alexmri.tracking import MetricsFile, WandbSink
from alexmri.training.checkpoint import Checkpoint, CheckpointWriter, Progress, load_newest
from alexmri.training.checkpoint_sync import CheckpointSync, open_checkpoint_sync
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.loop import Run
from alexmri.training.predictions_csv import PREDICTIONS, write_predictions
from alexmri.training.provenance import machine_document
from alexmri.training.results import (
    draw_plots,
    measure_run,
    test_metrics,
    write_model,
    write_results,
)
from alexmri.training.resume_check import changes, resume_check_of
from alexmri.training.run_banner import print_run_banner
from alexmri.training.run_folder import (
    archive_run,
    claimed,
    clear,
    is_finished,
    remove_checkpoints,
)

# A stopped training is killed after 85 s (contract.launcher); this much of it is for S3 at most.
# After a failure the last checkpoint is older, and other hosts wait for this one's end.
LAST_UPLOAD_SECONDS, AFTER_FAILURE_SECONDS = 75.0, 20.0


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job reads (split name -> folder) and where it writes.

    A run that stands there is resumed. A finished one is moved below `archive` where that is given;
    with `start_anew` any run is removed. Neither happens before the data has been read. With `fold`
    that fold of all images is the test split, and `compared` what all folds know of the images.
    """

    channels: Mapping[str, Path]
    settings: Settings
    output: Path
    model: Path
    checkpoints: Path
    start_anew: bool = False
    archive: Path | None = None
    fold: Fold | None = None
    compared: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `stopped` before its last epoch or not, with a model written or not."""

    stopped: bool
    evaluation: dict[str, Any] | None
    report: Path | None


def run_job(
    job: Job,
    terminal: Terminal,
    stop: StopRequest,
    *,
    model_when_stopped: bool,
    workers: Workers = ALONE,
) -> Outcome:
    """Train, evaluate and write everything; a job with checkpoints is resumed.

    All `workers` call this; the first one alone prints, writes and reports.

    When `stop` comes, a checkpoint is saved; on SIGTERM or SIGHUP, and else with
    `model_when_stopped`, the best model so far is evaluated and written too, until a second signal
    comes.

    Raises:
        UserError: for bad data, for a checkpoint of other settings or other data, where another
            training is writing to the same folders, where a GPU has too little memory, and where
            `export_onnx` lacks its packages.
        Stopped: by a signal before the training began; nothing was written that counts.
    """
    if job.settings.export_onnx:
        require_onnx()  # now, not after hours of training
    with _gpu_memory_in_words(job.settings):
        if workers.is_first:
            with _claimed_folders(job, terminal, stop, workers) as sync:
                return _run(job, sync, terminal, stop, model_when_stopped, workers)
        return _run(job, CheckpointSync(), terminal, stop, model_when_stopped, workers)


@contextmanager
def _claimed_folders(
    job: Job, terminal: Terminal, stop: StopRequest, workers: Workers
) -> Iterator[CheckpointSync]:
    """Keep other trainings out of the job's folders, and its checkpoints in S3, for the block."""
    for folder in (job.output, job.model, job.checkpoints):
        make_writable(folder)
    with claimed(job.checkpoints):
        remove_leftovers(job.output)
        remove_leftovers(job.model)
        with workers.interrupts(stop):
            sync = open_checkpoint_sync(job.settings, job.checkpoints, terminal)
        within = AFTER_FAILURE_SECONDS
        try:
            yield sync
            within = LAST_UPLOAD_SECONDS
        finally:
            sync.close(within=within - stop.seconds_ago)


@contextmanager
def _gpu_memory_in_words(settings: Settings) -> Iterator[None]:
    """Turn a GPU's lack of memory, wherever it is first noticed, into one sentence.

    Raises:
        UserError: the GPU is out of memory.
    """
    try:
        yield
    except RuntimeError as error:  # of which torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "CUDA out of memory" not in str(error):
            raise
        size = settings.batch_size
        smaller = f"batch_size {size // 2}" if size >= 4 else "a smaller image_size"
        raise UserError(
            f"the GPU is out of memory at batch_size {size} and image_size {settings.image_size};"
            f" {smaller} is likely to fit"
        ) from None


def _run(
    job: Job,
    sync: CheckpointSync,
    terminal: Terminal,
    stop: StopRequest,
    model_when_stopped: bool,
    workers: Workers,
) -> Outcome:
    compute = _set_up(job.settings, workers)
    # Where one of several workers is stopped here, the others hear of it below.
    with suppress(Stopped), stop.interrupts(at=1):
        dataset = _load(job, terminal)
        begun = None
        if workers.is_first:
            begun = _begin(job, dataset, compute, sync, terminal, workers)
    if workers.agree_to_stop(stop):
        raise Stopped
    with workers.interrupts(stop):
        run = _prepare_run(job, dataset, compute, terminal, workers)
    recorder = _Recorder(job, run, dataset, sync, terminal) if begun else None
    for metrics in run.epochs(stop, terminal, recorder.writer if recorder else None):
        if recorder:
            recorder.record(metrics)
    stopped = bool(stop) and not run.is_over()
    if begun is None or recorder is None:
        return Outcome(stopped, evaluation=None, report=None)
    recorder.close_checkpoints(stopped)
    wanted = model_when_stopped or stop.signal is not signal.SIGINT
    if stopped and not (wanted and run.progress.best_epoch):
        recorder.wandb.close()
        return Outcome(stopped=True, evaluation=None, report=None)
    try:
        with stop.interrupts(at=2):
            final, plots, evaluation = _write_all(job, run, dataset, begun, stopped, terminal)
    except Stopped:
        recorder.wandb.close()
        return Outcome(stopped=True, evaluation=None, report=None)
    terminal.say(metric_line(final))
    # Everything is written: a signal can only cut off the copy in W&B.
    try:
        with stop.interrupts(at=2):
            recorder.wandb.finish(final, plots)
    except Stopped:
        terminal.warn("W&B did not get everything; `wandb sync` sends the rest")
    return Outcome(stopped, evaluation, report=job.output / "report.html")


def _set_up(settings: Settings, workers: Workers) -> Compute:
    """Choose threads, kernels and device."""
    ask_for_large_pages()
    torch.set_num_threads(max(1, cpu_cores() // workers.local_size))
    # cuBLAS reads this when it is first used; kernels on a CPU are deterministic anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    return choose_compute(settings.precision)


def _load(job: Job, terminal: Terminal) -> Dataset:
    """Return the data; of several workers on a host one decodes it, and the others wait for it."""
    dataset = load_dataset(
        job.channels, job.settings, workers=cpu_cores(), terminal=terminal, fold=job.fold
    )
    find_negative_class(dataset.classes, job.settings.negative_class)  # a wrong name ends it here
    return dataset


@dataclass(frozen=True, slots=True)
class _Begun:
    """What the first worker knows before the first step: the audit, and what run.json will say."""

    audit: Mapping[str, Any]
    run_facts: Mapping[str, Any]
    started: float


def _begin(
    job: Job,
    dataset: Dataset,
    compute: Compute,
    sync: CheckpointSync,
    terminal: Terminal,
    workers: Workers,
) -> _Begun:
    """Audit the data, say what is trained on, make room for the run, fetch its checkpoint."""
    settings, started = job.settings, time.monotonic()
    images = number_of(len(dataset.folder.images), "image")
    with terminal.working(f"auditing {images}"):
        audited = audit(dataset, settings, job.compared)
    print_run_banner(dataset, audited, compute, terminal, workers=workers.size)
    if settings.resume == "never":
        remove_checkpoints(job.checkpoints)
        sync.clear()
    if job.start_anew:
        clear(job.output, job.model, job.checkpoints)
        sync.clear()
    elif job.archive and is_finished(job.output):
        kept = archive_run(job.output, job.model, job.checkpoints, job.archive)
        sync.clear()
        terminal.say(f"a finished run was here: it is kept in {kept}, and training starts anew")
    run_facts = {
        **machine_document(compute.device, compute.precision),
        "workers": workers.size,
        "finished": False,
    }
    write_json(job.output / "audit.json", audited.document)
    write_json(job.output / "split.json", dataset.split_document())
    write_json(job.output / "run.json", run_facts)
    now = resume_check_of(settings, dataset)
    sync.begin(lambda before: changes(before, now, job.checkpoints, allowed=_changed(settings)))
    return _Begun(audited.document, run_facts, started)


def _changed(settings: Settings) -> bool:
    """Whether a run may go on with other settings."""
    return settings.resume == "changed"


def _prepare_run(
    job: Job, dataset: Dataset, compute: Compute, terminal: Terminal, workers: Workers
) -> Run:
    """Return the run at its start, or where its newest checkpoint left it."""
    settings = job.settings
    now = resume_check_of(settings, dataset)
    steering = (settings.resume, settings.time_budget_seconds)
    workers.require_same([now, steering, compute.device.type, compute.precision])
    network = build(
        classes=len(dataset.classes),
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    train = dataset.part("train")
    validation, augment = dataset.part("validation"), choose_augment(settings)
    run = Run(network, train, validation, settings, compute, augment, workers)
    checkpoint = _newest_checkpoint(job.checkpoints, terminal, workers)
    if checkpoint:
        before = checkpoint.resume_check
        for change in changes(before, now, job.checkpoints, allowed=_changed(settings)):
            terminal.warn(f"resuming although {change}")
        run.restore(checkpoint)
        terminal.say(f"resuming at epoch {run.progress.epoch}, step {run.progress.step_in_epoch}")
    terminal.say(f"{number_of(settings.epochs, 'epoch')} of {number_of(len(train), 'image')}")
    return run


def _newest_checkpoint(folder: Path, terminal: Terminal, workers: Workers) -> Checkpoint | None:
    """Return the newest checkpoint, which the first worker reads for all: no other has the disk."""
    found = load_newest(folder, terminal.warn) if workers.is_first else None
    if workers.alone:
        return found
    about = json.dumps((asdict(found.progress), found.resume_check)).encode() if found else b""
    if not (about := workers.from_first(about)):
        return None
    tensors = workers.from_first(save(dict(found.tensors)) if found else b"")
    progress, resume_check = json.loads(about)
    return Checkpoint(Progress(**progress), load(tensors), resume_check)


class _Recorder:
    """What the first worker writes while a run goes on: log, metrics.jsonl, W&B, checkpoints."""

    def __init__(
        self, job: Job, run: Run, dataset: Dataset, sync: CheckpointSync, terminal: Terminal
    ) -> None:
        self._run, self._terminal = run, terminal
        self._said_how_long = False
        self._metrics = MetricsFile(job.output / "metrics.jsonl", run.progress.history)
        self.wandb = WandbSink(
            job.settings,
            job.output,
            run.progress.tracking_id,
            {"data_fingerprint": dataset.fingerprint, "images": len(dataset.folder.images)},
            terminal.warn,
        )
        run.progress.tracking_id = self.wandb.run_id
        self.writer = CheckpointWriter(
            job.checkpoints,
            resume_check_of(job.settings, dataset),
            keep=job.settings.keep_checkpoints,
            saved=sync.saved,
        )

    def record(self, metrics: Mapping[str, float]) -> None:
        """Write down one epoch."""
        self._terminal.say(metric_line({k: v for k, v in metrics.items() if k != "learning_rate"}))
        self._metrics.append(metrics)
        self.wandb.log(metrics)
        images = self._run.images_to_go
        if images and not self._said_how_long:
            self._said_how_long = True
            self._terminal.say(f"about {_duration(images / metrics['images_per_second'])} to go")

    def close_checkpoints(self, stopped: bool) -> None:
        """Wait for the checkpoint that is being written."""
        saved = self.writer.wait()
        if saved and stopped:
            epoch = self._run.progress.epoch
            self._terminal.say(f"stopped in epoch {epoch}; checkpoint {saved.stem} is saved")


def _write_all(
    job: Job, run: Run, dataset: Dataset, begun: _Begun, stopped: bool, terminal: Terminal
) -> tuple[dict[str, float | None], dict[str, bytes], dict[str, Any]]:
    """Measure the run; write model, figures and report; return last metrics, plots, evaluation."""
    if stopped:  # a model before all else: the platform may not wait for the figures
        facts = measure_run(run, dataset, begun.audit, terminal, test=False)
        write_model(job.model, run, dataset, facts, soon=True)
    facts = measure_run(run, dataset, begun.audit, terminal)
    with terminal.working("writing the model and the report"):
        write_model(job.model, run, dataset, facts)
        plots = draw_plots(facts)
    run_facts = {
        **begun.run_facts,
        "finished": not stopped,
        "training_seconds": round(run.progress.seconds, 1),
        "total_seconds": round(time.monotonic() - begun.started, 1),
    }
    if facts["test"]:
        write_predictions(job.output / PREDICTIONS, facts["predictions"])
    evaluation = write_results(job.output, facts, plots, run_facts)
    return _metrics_of_saved_model(run, facts), plots, evaluation


def _metrics_of_saved_model(run: Run, facts: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the last metric line: every value belongs to the model that was saved."""
    epoch = run.progress.history[run.progress.best_epoch - 1]
    shown = {name: value for name, value in epoch.items() if name != "learning_rate"}
    return {**shown, **test_metrics(facts["test"])}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
