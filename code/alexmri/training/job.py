"""The whole journey of a training job: from folders of slices to a model, a report, figures."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alexmri.contract.metric_lines import metric_line
from alexmri.contract.resources import ask_for_large_pages, cpu_cores
from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.audit import audit
from alexmri.data.augment import choose_augment
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.data.folds import Fold
from alexmri.errors import UserError
from alexmri.evaluation.negative_class import find_negative_class
from alexmri.files import remove_leftovers, write_json
from alexmri.model.alexnet import build
from alexmri.model.export import require_onnx
from alexmri.model.forward import Compute, choose_compute
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.tracking import MetricsFile, WandbSink
from alexmri.training.checkpoint import Checkpoint, CheckpointWriter, Progress, load_newest
from alexmri.training.checkpoint_sync import CheckpointSync, open_checkpoint_sync
from alexmri.training.distributed import ALONE, Workers
from alexmri.training.estimate import MUCH, estimate_seconds
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
    make_writable,
    remove_checkpoints,
)

# A stopped training is killed after 85 s (contract.supervisor); this much of it is for S3 at most.
LAST_UPLOAD_SECONDS = 75.0
# What the first worker tells the others once all is written.
ALL_DONE = "done"


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job reads (split name -> folder) and where it writes.

    A run that stands there is resumed. A finished one is moved below `archive` where that is given;
    with `start_anew` any run is removed. Neither happens before the data has been read. With `fold`
    that fold of all images is the test split.
    """

    channels: Mapping[str, Path]
    settings: Settings
    output: Path
    model: Path
    checkpoints: Path
    start_anew: bool = False
    archive: Path | None = None
    fold: Fold | None = None


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

    When `stop` comes, a checkpoint is saved; on SIGTERM, and else with `model_when_stopped`, the
    best model so far is evaluated and written too, until a second signal comes.

    Raises:
        UserError: for bad data, for a checkpoint of other settings or other data, where another
            training is writing to the same folders, and where `export_onnx` lacks its packages.
        Stopped: by a signal before the training began; nothing was written that counts.
    """
    if job.settings.export_onnx:
        require_onnx()  # now, not after hours of training
    if not workers.is_first:
        return _help(job, terminal, stop, workers)
    for folder in (job.output, job.model, job.checkpoints):
        make_writable(folder)
    with claimed(job.checkpoints):
        remove_leftovers(job.output)
        remove_leftovers(job.model)
        with stop.interrupts(at=1):
            sync = open_checkpoint_sync(job.settings.checkpoint_s3, job.checkpoints, terminal)
        try:
            outcome = _run(job, sync, terminal, stop, model_when_stopped, workers)
        finally:
            sync.close(within=LAST_UPLOAD_SECONDS - stop.seconds_ago)
    workers.tell(ALL_DONE)
    return outcome


def _help(job: Job, terminal: Terminal, stop: StopRequest, workers: Workers) -> Outcome:
    """Do a worker's part of a training that the first worker writes and reports on."""
    compute = _set_up(job.settings, workers)
    dataset = _load(job, terminal, stop, workers)
    workers.meet("data", stop)
    run = _prepare_run(job, dataset, compute, terminal, workers)
    for _ in run.epochs(stop, terminal):
        pass
    workers.wait_for(ALL_DONE)
    return Outcome(stopped=bool(stop), evaluation=None, report=None)


def _set_up(settings: Settings, workers: Workers) -> Compute:
    """Choose threads, kernels and device."""
    ask_for_large_pages()
    torch.set_num_threads(max(1, cpu_cores() // workers.local_size))
    # cuBLAS reads this when it is first used; kernels on a CPU are deterministic anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    return choose_compute(settings.precision)


def _load(job: Job, terminal: Terminal, stop: StopRequest, workers: Workers) -> Dataset:
    """Return the data, which the first worker of each host decodes, with all of its cores."""
    with stop.interrupts(at=1), workers.first_of_host_first("decoded", stop):
        dataset = load_dataset(
            job.channels, job.settings, workers=cpu_cores(), terminal=terminal, fold=job.fold
        )
    find_negative_class(dataset.classes, job.settings.negative_class)  # a wrong name ends it here
    return dataset


def _run(
    job: Job,
    sync: CheckpointSync,
    terminal: Terminal,
    stop: StopRequest,
    model_when_stopped: bool,
    workers: Workers,
) -> Outcome:
    started = time.monotonic()
    settings = job.settings
    compute = _set_up(settings, workers)
    dataset = _load(job, terminal, stop, workers)
    with stop.interrupts(at=1):
        audited = audit(dataset, settings)
    print_run_banner(dataset, audited, compute, terminal, workers=workers.size)
    if settings.resume == "never":
        remove_checkpoints(job.checkpoints)
        sync.clear()
    if job.start_anew:
        clear(job.output, job.model, job.checkpoints)
        sync.clear()
    elif job.archive and is_finished(job.output):
        aside = archive_run(job.output, job.model, job.checkpoints, job.archive)
        sync.clear()
        terminal.say(f"a finished run was here: it is kept in {aside}, and training starts anew")
    run_facts = {
        **machine_document(compute.device, compute.precision),
        "workers": workers.size,
        "finished": False,
    }
    write_json(job.output / "audit.json", audited.document)
    write_json(job.output / "split.json", dataset.split_document())
    write_json(job.output / "run.json", run_facts)

    with stop.interrupts(at=1):
        sync.restore()
    workers.meet("data", stop)
    with workers.interrupts(stop):
        run = _prepare_run(job, dataset, compute, terminal, workers)
    with stop.interrupts(at=1):
        sync.claim()
    wandb = _train(job, run, dataset, sync, terminal, stop)
    stopped = bool(stop) and not run.is_over()
    wanted = model_when_stopped or stop.signal is signal.SIGTERM
    if stopped and not (wanted and run.progress.best_epoch):
        wandb.close()
        return Outcome(stopped=True, evaluation=None, report=None)

    try:
        with stop.interrupts(at=2):
            if stopped:  # a model before all else: the platform may not wait for the figures
                facts = measure_run(run, dataset, audited.document, test=False)
                write_model(job.model, run, dataset, facts, soon=True)
            facts = measure_run(run, dataset, audited.document)
            write_model(job.model, run, dataset, facts)
            plots = draw_plots(facts)
            run_facts |= {
                "finished": not stopped,
                "training_seconds": round(run.progress.seconds, 1),
                "total_seconds": round(time.monotonic() - started, 1),
            }
            if facts["test"]:
                write_predictions(job.output / PREDICTIONS, facts["predictions"])
            evaluation = write_results(job.output, facts, plots, run_facts)
            final = _last_metrics(run, facts)
            wandb.finish(final, plots)
    except Stopped:
        return Outcome(stopped=True, evaluation=None, report=None)
    terminal.say(metric_line(final))
    return Outcome(stopped=stopped, evaluation=evaluation, report=job.output / "report.html")


def _prepare_run(
    job: Job, dataset: Dataset, compute: Compute, terminal: Terminal, workers: Workers
) -> Run:
    """Return the run at its start, or where its newest checkpoint left it."""
    settings = job.settings
    if not workers.alone:
        about = workers.gather_json(resume_check_of(settings, dataset))
        if any(theirs != about[0] for theirs in about):
            raise UserError(
                "the workers do not have the same images, split alike, and the same settings; give"
                " all hosts one data set and the same hyperparameters"
            )
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
        for change in changes(
            checkpoint.resume_check,
            resume_check_of(settings, dataset),
            job.checkpoints,
            allowed=settings.resume == "changed",
        ):
            terminal.warn(f"resuming although {change}")
        run.restore(checkpoint)
        terminal.say(f"resuming at epoch {run.progress.epoch}, step {run.progress.step_in_epoch}")
    whole, share = estimate_seconds(run.state.network, len(train), settings, compute, workers)
    if share > MUCH:
        terminal.warn(
            f"{share:.0%} of a step goes into adding up gradients: {workers.size} workers have too"
            f" little to compute at batch_size {settings.batch_size}; fewer of them, or a larger"
            " batch, may train faster"
        )
    seconds = whole * (1 - run.done_share)
    terminal.say(
        f"{settings.epochs} epochs of {len(train)} images: about {_duration(seconds)} to go"
    )
    return run


def _newest_checkpoint(folder: Path, terminal: Terminal, workers: Workers) -> Checkpoint | None:
    """Return the newest checkpoint, which the first worker reads for all: no other has the disk."""
    found = load_newest(folder, terminal.warn) if workers.is_first else None
    if workers.alone:
        return found
    about = workers.json_from_first((asdict(found.progress), found.resume_check) if found else None)
    if about is None:
        return None
    progress, resume_check = about
    tensors = workers.tensors_from_first(found.tensors if found else None)
    return Checkpoint(Progress(**progress), tensors, resume_check)


def _train(
    job: Job,
    run: Run,
    dataset: Dataset,
    sync: CheckpointSync,
    terminal: Terminal,
    stop: StopRequest,
) -> WandbSink:
    """Train to the end or to `stop`, recording every epoch and saving checkpoints."""
    record = MetricsFile(job.output / "metrics.jsonl", run.progress.history)
    wandb = WandbSink(
        job.settings,
        job.output,
        run.progress.tracking_id,
        {"data_fingerprint": dataset.fingerprint, "images": len(dataset.folder.images)},
        terminal.warn,
    )
    run.progress.tracking_id = wandb.run_id
    writer = CheckpointWriter(
        job.checkpoints,
        resume_check_of(job.settings, dataset),
        keep=job.settings.keep_checkpoints,
        saved=sync.saved,
    )
    try:
        for metrics in run.epochs(stop, terminal, writer):
            terminal.say(metric_line({k: v for k, v in metrics.items() if k != "learning_rate"}))
            record.append(metrics)
            wandb.log(metrics)
    except torch.OutOfMemoryError:
        size = job.settings.batch_size
        raise UserError(
            f"the GPU is out of memory at batch_size {size}; {max(1, size // 2)} is likely to fit"
        ) from None
    saved = writer.wait()
    if saved and stop and not run.is_over():
        terminal.say(f"stopped in epoch {run.progress.epoch}; checkpoint {saved.stem} is saved")
    return wandb


def _last_metrics(run: Run, facts: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics of the model that was saved, for the last metric line."""
    return {
        "epoch": run.progress.best_epoch,
        "val_macro_f1": facts["validation"]["macro_f1"]["value"],
        **test_metrics(facts["test"]),
    }


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
