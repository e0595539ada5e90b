"""The whole journey of a training job: from folders of slices to a model, a report, figures."""

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alexmri.contract.metric_lines import metric_line
from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import StopRequest
from alexmri.data.audit import LeakProbe, audit_document, probe_leak, warnings_of
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.errors import UserError
from alexmri.evaluation.report import verdict
from alexmri.files import write_json
from alexmri.model.alexnet import build
from alexmri.model.forward import Compute, choose_compute
from alexmri.settings import Settings
from alexmri.terminal import Terminal
from alexmri.tracking import MetricsFile, WandbSink
from alexmri.training.checkpoint import Checkpoint, load_newest
from alexmri.training.estimate import estimate_seconds
from alexmri.training.folders import clear, is_finished, make_writable, set_aside
from alexmri.training.loop import Run
from alexmri.training.provenance import machine_document, version
from alexmri.training.results import (
    draw_plots,
    measure_run,
    protocol_document,
    test_metrics,
    write_model,
    write_results,
)

# Settings that steer the run but not its result: a resumed run may change them.
FREE_ON_RESUME = frozenset(
    {
        "checkpoint_every_epochs",
        "checkpoint_every_seconds",
        "keep_checkpoints",
        "time_budget_seconds",
        "wandb_project",
        "wandb_mode",
    }
)


@dataclass(frozen=True, slots=True)
class Job:
    """Where a job reads (split name -> folder) and where it writes.

    A run that stands there is resumed. A finished one is moved below `earlier` where that is given;
    with `start_anew` any run is removed. Neither happens before the data has been read.
    """

    channels: Mapping[str, Path]
    settings: Settings
    output: Path
    model: Path
    checkpoints: Path
    start_anew: bool = False
    earlier: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `stopped` before its last epoch or not, with a model written or not."""

    stopped: bool
    evaluation: dict[str, Any] | None
    report: Path | None


def run_job(
    job: Job, terminal: Terminal, stop: StopRequest, *, model_when_stopped: bool
) -> Outcome:
    """Train, evaluate and write everything; a job with checkpoints is resumed.

    When `stop` comes, a checkpoint is saved; on SIGTERM, and else with `model_when_stopped`, the
    best model so far is evaluated and written too.

    Raises:
        UserError: for bad data, and for a checkpoint of other settings or other data.
    """
    started = time.monotonic()
    settings = job.settings
    cores = cpu_cores()
    torch.set_num_threads(cores)
    compute = choose_compute(settings.precision)

    for folder in (job.output, job.model, job.checkpoints):
        make_writable(folder)
    dataset = load_dataset(job.channels, settings, workers=cores, terminal=terminal)
    probe = probe_leak(dataset, settings)
    _introduce(dataset, probe, compute, terminal)
    if job.start_anew:
        clear(job.output, job.model, job.checkpoints)
    elif job.earlier and is_finished(job.output):
        aside = set_aside(job.output, job.model, job.checkpoints, job.earlier)
        terminal.say(f"a finished run was here: it is kept in {aside}, and training starts anew")
    run_facts = {**machine_document(compute.device, compute.precision), "finished": False}
    write_json(job.output / "audit.json", audit_document(dataset, probe))
    write_json(job.output / "split.json", dataset.split_document())
    write_json(job.output / "run.json", run_facts)

    run = _prepare_run(job, dataset, compute, terminal)
    wandb = _train(job, run, dataset, terminal, stop)
    stopped = bool(stop) and not run.is_over()
    wanted = model_when_stopped or stop.signal is signal.SIGTERM
    if stopped and not (wanted and run.progress.best_epoch):
        wandb.close()
        return Outcome(stopped=True, evaluation=None, report=None)

    facts = measure_run(run, dataset, probe)
    plots = draw_plots(facts)
    write_model(job.model, run, dataset, facts)
    run_facts |= {
        "finished": not stopped,
        "training_seconds": round(run.progress.seconds, 1),
        "total_seconds": round(time.monotonic() - started, 1),
    }
    evaluation = write_results(job.output, facts, plots, run_facts)
    best = run.progress.history[run.progress.best_epoch - 1]
    final = {
        "epoch": run.progress.best_epoch,
        "val_macro_f1": best["val_macro_f1"],
        **test_metrics(facts["test"]),
    }
    wandb.finish(final, plots)
    terminal.say(metric_line(final))
    return Outcome(stopped=stopped, evaluation=evaluation, report=job.output / "report.html")


def _prepare_run(job: Job, dataset: Dataset, compute: Compute, terminal: Terminal) -> Run:
    """Return the run at its start, or where its newest checkpoint left it."""
    settings = job.settings
    network = build(
        classes=len(dataset.classes),
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    train = dataset.part("train")
    run = Run(network, train, dataset.part("validation"), settings, compute, _augmenter(settings))
    checkpoint = load_newest(job.checkpoints, terminal.warn)
    if checkpoint:
        _refuse_other_run(checkpoint, _manifest(settings, dataset), job.checkpoints)
        run.restore(checkpoint)
        terminal.say(f"resuming at epoch {run.progress.epoch}, step {run.progress.step_in_epoch}")
    seconds = estimate_seconds(run.network, len(train), settings, compute) * (1 - run.done_share)
    terminal.say(
        f"{settings.epochs} epochs of {len(train)} images: about {_duration(seconds)} to go"
    )
    return run


def _train(
    job: Job, run: Run, dataset: Dataset, terminal: Terminal, stop: StopRequest
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
    manifest = _manifest(job.settings, dataset)
    for metrics in run.epochs(stop, terminal):
        terminal.say(metric_line({k: v for k, v in metrics.items() if k != "learning_rate"}))
        record.append(metrics)
        wandb.log(metrics)
        if run.checkpoint_is_due():
            run.save(job.checkpoints, manifest)
    if stop and not run.is_over():
        path = run.save(job.checkpoints, manifest)
        terminal.say(f"stopped in epoch {run.progress.epoch}; checkpoint {path.stem} is saved")
    return wandb


def _introduce(dataset: Dataset, probe: LeakProbe, compute: Compute, terminal: Terminal) -> None:
    folder = dataset.folder
    people = f", {dataset.groups.count} people" if dataset.groups else ", people unknown"
    terminal.say(f"alexmri {version()}: research software, not a diagnostic device")
    terminal.say(
        f"device: {compute.device.type}, precision {compute.precision},"
        f" {torch.get_num_threads()} threads"
    )
    terminal.say(
        f"data: {len(folder.images)} images in {len(folder.classes)} classes{people};"
        f" {folder.ignored_files} other files ignored;"
        f" {'decoded before' if dataset.store.reused else 'decoded now'}"
    )
    for split, counts in dataset.counts().items():
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        terminal.say(f"  {split}: {sum(counts.values())} ({shown})")
    for warning in warnings_of(dataset):
        terminal.warn(warning)
    terminal.say(verdict(protocol_document(dataset), probe.document(), None)[0])
    scores = [
        f"{score:.3f} {title}"
        for score, title in (
            (probe.slice, "on this split" if dataset.folder.is_split else "on a slice split"),
            (probe.subject, "on a split by person"),
            (probe.shuffled, "with labels shuffled between people"),
        )
        if score is not None
    ]
    if scores:
        terminal.say(f"looking up the most similar training slice scores {', '.join(scores)}")


def _augmenter(settings: Settings) -> Any:
    if settings.augment == "none":
        return None
    from alexmri.data.augment import Augmenter  # importing albumentations costs a second

    return Augmenter(settings)


def _manifest(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    values = settings.model_dump(mode="json")
    return {
        "settings": {k: v for k, v in values.items() if k not in FREE_ON_RESUME},
        "data": dataset.fingerprint,
        "split": dataset.split_fingerprint,
    }


def _refuse_other_run(checkpoint: Checkpoint, manifest: Mapping[str, Any], folder: Path) -> None:
    before = checkpoint.manifest
    differences = [
        f"{key} was {before['settings'].get(key)}, is {value}"
        for key, value in manifest["settings"].items()
        if before["settings"].get(key) != value
    ]
    if before["data"] != manifest["data"]:
        differences.append("the images are not the same")
    elif before["split"] != manifest["split"]:
        differences.append("the images are not split or ordered as before")
    if differences:
        raise UserError(
            f"the checkpoints in {folder} belong to another run: {'; '.join(differences)};"
            " undo the change, choose another output folder, or start anew: empty that folder (what"
            " --overwrite does for `alexmri train`)"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
