"""Cross-validate: train and test a model per fold, each an ordinary run, and pool what they said.

The folder of a cross-validation holds fold-1, fold-2 …, each what `alexmri train` leaves, and the
figures of all folds together. Whatever interrupts it, the same command goes on.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.contract.resources import cpu_cores
from alexmri.contract.signals import Stopped, StopRequest
from alexmri.data.audit import Comparison, compare_images
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.data.folders import discover
from alexmri.data.groups_table import GROUPS_FILE, Column, read_columns
from alexmri.data.slicing import SLICES
from alexmri.data.split import Fold
from alexmri.data.subjects import find_subjects
from alexmri.errors import UserError
from alexmri.evaluation.metrics import find_negative_class
from alexmri.files import make_writable, remove_leftovers, require_json_object, write_json
from alexmri.settings import Settings
from alexmri.terminal import Terminal, number_of
from alexmri.training.job import Job, run_job
from alexmri.training.pooled import pool_folds
from alexmri.training.predictions_csv import PREDICTIONS
from alexmri.training.resume_check import images_changed, resume_check_of, settings_changed
from alexmri.training.run_folder import RESULTS, claimed, is_finished

SCHEMA = "alexmri.crossval/1"
PLAN = "crossval.json"


@dataclass(frozen=True, slots=True)
class Crossval:
    """What to cross-validate and where to write; `start_anew` removes the one that stands there.

    The checkpoints of a finished fold are removed unless `keep_all_checkpoints`. The pooled answers
    are also measured by `subgroups`, columns of groups.csv.
    """

    data: Path
    settings: Settings
    output: Path
    folds: int
    start_anew: bool = False
    keep_all_checkpoints: bool = False
    subgroups: tuple[Column, ...] = ()

    def job(self, number: int, compared: Comparison) -> Job:
        """Return the training of fold `number` (from 1)."""
        output = self.output / f"fold-{number}"
        settings = self.settings
        if settings.checkpoint_s3:
            own = f"{settings.checkpoint_s3}/fold-{number}"
            settings = settings.model_copy(update={"checkpoint_s3": own})
        return Job(
            channels={"train": self.data},
            settings=settings,
            output=output,
            model=output / "model",
            checkpoints=output / "checkpoints",
            # What stands here is gone by then; what stands in S3 is not.
            start_anew=self.start_anew,
            fold=Fold(number, self.folds),
            compared=compared,
        )


def choose_groups_file(data: Path, settings: Settings) -> str | None:
    """Return groups.csv in `data`, which tells people too where subgroups are its columns.

    Returns None where settings say how people are found, and beside slices.json, where it is used
    unasked: so subgroups can be added to finished folds.
    """
    told = settings.groups_file or settings.group_regex or settings.groups == "inferred"
    if told or (data / SLICES).is_file() or not (data / GROUPS_FILE).is_file():
        return None
    return str(data / GROUPS_FILE)


def choose_split_by(data: Path, settings: Settings, terminal: Terminal) -> str:
    """Return subject where people are known or told by pixels, else slice, said aloud."""
    if settings.groups == "inferred":
        return "subject"
    folder = discover(data)
    groups = find_subjects(
        folder.images, folder.root, regex=settings.group_regex, csv_file=settings.groups_file
    )
    if groups is None:
        terminal.warn(
            "the file names do not tell who is on an image, so the folds are dealt slice by slice:"
            " people may be in training and test at once; pass group_regex, groups_file"
            " or --groups inferred"
        )
    return "subject" if groups else "slice"


def run_crossval(plan: Crossval, terminal: Terminal, stop: StopRequest) -> dict[str, Any] | None:
    """Train every fold that is not finished, then write and return the figures of all of them.

    Returns None where `stop` came first: the same call goes on from there.

    Raises:
        UserError: as `run_job`, and where the folder holds another cross-validation.
    """
    columns = _read_subgroups(plan)
    make_writable(plan.output)
    with claimed(plan.output):
        try:
            with stop.interrupts(at=1):
                dataset = load_dataset(
                    {"train": plan.data},
                    plan.settings,
                    workers=cpu_cores(),
                    terminal=terminal,
                    fold=Fold(1, plan.folds),
                )
                find_negative_class(dataset.classes, plan.settings.negative_class)
            _take_up(plan, dataset)
            images = number_of(len(dataset.folder.images), "image")
            with stop.interrupts(at=1), terminal.working(f"auditing {images}"):
                compared = compare_images(dataset)
            for number in range(1, plan.folds + 1):
                if not _finish_fold(plan, number, compared, terminal, stop):
                    return None
            measuring = terminal.working("computing figures and their intervals over all folds")
            with stop.interrupts(at=1), measuring:
                return pool_folds(plan.output, plan.folds, plan.settings, columns)
        except Stopped:
            return None


def _read_subgroups(plan: Crossval) -> tuple[Column, ...]:
    """Return the columns with their values, before hours of training."""
    if not plan.subgroups:
        return ()
    folder = discover(plan.data)
    return read_columns(plan.subgroups, folder.images, folder.root, plan.settings.groups_file)


def _take_up(plan: Crossval, dataset: Dataset) -> None:
    """Say in the folder what is done there; refuse it where something else was begun."""
    path = plan.output / PLAN
    now = {"schema": SCHEMA, "folds": plan.folds, **resume_check_of(plan.settings, dataset)}
    if plan.start_anew:
        _clear(plan.output)
    if not path.exists():
        if (plan.output / "run.json").exists():
            raise UserError(
                f"{plan.output} holds a training; choose another output folder for the folds"
            )
        write_json(path, now)
        return
    try:
        before = require_json_object(path)
        differs = (
            []
            if before["folds"] == plan.folds
            else [f"folds was {before['folds']}, is {plan.folds}"]
        )
        differs += settings_changed(before, now).values()
        differs = differs or images_changed(before, now)
    except (UserError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged; start anew with --overwrite") from None
    if differs:
        raise UserError(
            f"{plan.output} holds another cross-validation: {'; '.join(differs)}; undo the change,"
            " choose another output folder, or start anew with --overwrite"
        )


def _finish_fold(
    plan: Crossval, number: int, compared: Comparison, terminal: Terminal, stop: StopRequest
) -> bool:
    """Train fold `number` unless that was done before; return whether it is finished now."""
    job = plan.job(number, compared)
    if is_finished(job.output) and (job.output / PREDICTIONS).is_file():
        terminal.say(f"fold {number} of {plan.folds} is finished")
    else:
        if stop:
            return False
        terminal.say(f"fold {number} of {plan.folds}: {job.output}")
        if run_job(job, terminal, stop, model_when_stopped=False).stopped:
            return False
    if not plan.keep_all_checkpoints:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    return True


def _clear(output: Path) -> None:
    """Remove the cross-validation in `output`, and nothing else there."""
    if not (output / PLAN).is_file():
        return
    for name in RESULTS:
        (output / name).unlink(missing_ok=True)
    for folder in output.glob("fold-*"):
        if (folder / "run.json").is_file() or (folder / "checkpoints").is_dir():
            shutil.rmtree(folder)
    # Last, so that what is left after a kill is still known for what it is.
    (output / PLAN).unlink()
    remove_leftovers(output)
