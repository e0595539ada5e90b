"""What stands in the folders a job writes to, before it writes: nothing, a run, a finished run."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alexmri.errors import UserError
from alexmri.files import read_json_object, remove_leftovers, writing

# How long a killed training may take to be gone.
DYING_SECONDS = 10.0

# The plots that a run may leave, as PNG: see evaluation/plots.py.
PLOTS = (
    *("curves", "confusion", "confusion_subjects", "reliability", "roc", "roc_demented"),
    "precision_recall",
)
# The two files of a checkpoint; see checkpoint.py, which loads torch and is not imported here.
CHECKPOINT_FILE = re.compile(r"step-(\d{8,})(?:-(\d+))?\.(json|safetensors)", flags=re.ASCII)
# What a run leaves beside its model and its checkpoints.
RESULTS = (
    *("audit.json", "split.json", "run.json", "metrics.jsonl", "evaluation.json"),
    *("statistics.json", "report.html", "predictions.csv"),
    *(f"{name}.png" for name in PLOTS),
)


def is_finished(output: Path) -> bool:
    """Whether `output` holds a run that came to its end."""
    try:
        facts = read_json_object(output / "run.json")
    except UserError:
        return False
    return facts is not None and facts.get("finished") is True


def clear(output: Path, model: Path, checkpoints: Path) -> None:
    """Remove the run that stands in these folders, if one does, and nothing else in `output`."""
    if not (output / "run.json").is_file():
        return
    for name in RESULTS:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(model, ignore_errors=True)
    remove_checkpoints(checkpoints)


def archive_run(output: Path, model: Path, checkpoints: Path, archive: Path) -> Path:
    """Move the finished run's results to `archive`/TIME, copy its model there; return that folder.

    The model stays in its place too until the new one replaces it, since it may be in use. The
    checkpoints go: they belong to the finished run and would be taken for the new one's.
    """
    facts = read_json_object(output / "run.json") or {}
    moment = str(facts.get("started", "")).partition("+")[0]
    started = "".join(c for c in moment if c.isascii() and c.isalnum())[:40]
    folder = archive / (started or "unknown-time")
    with writing(folder):
        shutil.copytree(model, folder / "model", dirs_exist_ok=True)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        # What is inside moves, not the folder: the folder may be a mount.
        for path in sorted(output.iterdir()):
            shutil.move(path, folder / "data" / path.name)
    remove_checkpoints(checkpoints)
    return folder


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint in `folder`, and nothing else there."""
    for name in in_order(path.name for path in folder.glob("step-*")):
        (folder / name).unlink()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other trainings out of `folder` inside the block, and clear away a killed one's scraps.

    The lock is the kernel's (flock), so it ends with the process, however that ends.

    Raises:
        UserError: another training holds it, also after a wait for one that is just dying.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + DYING_SECONDS
        while not _lock(opened):
            if time.monotonic() > deadline:
                raise UserError(
                    f"another training is writing to {folder}; wait for it, stop it, or choose"
                    " another output folder"
                )
            time.sleep(0.1)
        remove_leftovers(folder)
        yield
    finally:
        os.close(opened)


def _lock(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def in_order(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are files of checkpoints, the oldest checkpoint first."""
    return sorted((name for name in names if CHECKPOINT_FILE.fullmatch(name)), key=age_of)


def age_of(name: str) -> tuple[int, int]:
    """Return what a checkpoint's file is sorted by: its step, and its number at this step."""
    found = CHECKPOINT_FILE.fullmatch(name)
    assert found, f"{name} is no file of a checkpoint"  # noqa: S101 - see in_order
    return int(found[1]), int(found[2] or 0)
