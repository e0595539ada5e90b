"""What stands in the folders a job writes to, before it writes: nothing, a run, a finished run."""

import json
import os
import shutil
from pathlib import Path

from alexmri.errors import UserError

# What a run leaves beside its model and its checkpoints.
RESULTS = (
    *("audit.json", "split.json", "run.json", "metrics.jsonl", "evaluation.json"),
    *("statistics.json", "report.html", "curves.png", "confusion.png", "reliability.png"),
    "roc.png",
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
    shutil.rmtree(checkpoints, ignore_errors=True)


def set_aside(output: Path, model: Path, checkpoints: Path, earlier: Path) -> Path:
    """Move the finished run's results to `earlier`/TIME, copy its model there; return that folder.

    The model stays in its place too until the new one replaces it, since it may be in use. The
    checkpoints go: they belong to the finished run and would be taken for the new one's.
    """
    facts = json.loads((output / "run.json").read_text(encoding="utf-8"))
    started = "".join(c for c in facts["started"].partition("+")[0] if c.isalnum())
    aside = earlier / started
    shutil.copytree(model, aside / "model", dirs_exist_ok=True)
    (aside / "data").mkdir(parents=True, exist_ok=True)
    # What is inside moves, not the folder: the folder may be a mount.
    for path in sorted(output.iterdir()):
        shutil.move(path, aside / "data" / path.name)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return aside


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
