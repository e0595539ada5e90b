"""What stands in the folders a job writes to, before it writes: nothing, a run, a finished run."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexmri.errors import UserError
from alexmri.files import remove_leftovers

# How long a killed training may take to be gone.
DYING_SECONDS = 10.0

# What a run leaves beside its model and its checkpoints.
RESULTS = (
    *("audit.json", "split.json", "run.json", "metrics.jsonl", "evaluation.json"),
    *("statistics.json", "report.html", "curves.png", "confusion.png", "reliability.png"),
    *("roc.png", "predictions.csv"),
)


def is_finished(output: Path) -> bool:
    """Whether `output` holds a run that came to its end."""
    try:
        facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(facts.get("finished"))


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
    facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
    started = "".join(c for c in facts["started"].partition("+")[0] if c.isalnum())
    folder = archive / started
    shutil.copytree(model, folder / "model", dirs_exist_ok=True)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # What is inside moves, not the folder: the folder may be a mount.
    for path in sorted(output.iterdir()):
        shutil.move(path, folder / "data" / path.name)
    remove_checkpoints(checkpoints)
    return folder


def remove_checkpoints(folder: Path) -> None:
    """Remove every checkpoint in `folder`, and nothing else there."""
    for path in folder.glob("step-*"):
        path.unlink()


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


def make_writable(folder: Path) -> None:
    """Make `folder` where it is missing; UserError where this user cannot write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"the folder {folder} cannot be written by user {os.getuid()}; give it to that user, or"
            " run as the user it belongs to"
        )
