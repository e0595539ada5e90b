"""Save and find the state of a run: tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is two files, `step-00000123.safetensors` and `step-00000123.json`. The JSON appears
last and carries the checksums of both, so a checkpoint is complete, or known to be damaged.
"""

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexmri.errors import UserError
from alexmri.files import appearing, sha256_of, write_json

SCHEMA = "alexmri.checkpoint/2"
# What reading a damaged checkpoint raises.
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(slots=True)
class Progress:
    """Where a run stands: everything but tensors.

    `step` counts optimiser steps of the whole run; the next one is number `step`. The sums belong
    to the epoch under way.
    """

    epoch: int = 1
    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    tracking_id: str | None = None
    # How often the loss ran away, and what the learning rate is multiplied by since.
    recoveries: int = 0
    learning_rate_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back: progress, tensors by name, and what the run was about."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    resume_check: Mapping[str, Any]


class CheckpointWriter:
    """Writes the checkpoints of one run in the background, so that no step waits for a disk."""

    def __init__(
        self,
        folder: Path,
        resume_check: Mapping[str, Any],
        *,
        keep: int,
        saved: Callable[[Path], None] = lambda document: None,
    ) -> None:
        """Write into `folder`; `saved` is called with the JSON file of every new checkpoint."""
        self._folder = folder
        self._manifest = resume_check
        self._keep = keep
        self._saved = saved
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None
        self.stalled_seconds = 0.0
        self.count = 0

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still being written."""
        return self._writing is not None and not self._writing.done()

    def save(
        self, progress: Progress, mutable: Mapping[str, Tensor], immutable: Mapping[str, Tensor]
    ) -> None:
        """Copy the state and begin to write it; the training waits for the copy alone.

        Args:
            mutable: tensors that the next step changes.
            immutable: tensors that are replaced, never changed, and so need no copy.

        Raises:
            UserError: the checkpoint before could not be written.
        """
        self.wait()
        began = time.monotonic()
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in mutable.items()}
        state = copy.deepcopy(progress)
        self._writing = self._pool.submit(self._write, state, {**tensors, **immutable})
        self.count += 1
        self.stalled_seconds += time.monotonic() - began

    def wait(self) -> Path | None:
        """Wait for the checkpoint being written; return its JSON file, if there is one.

        Raises:
            UserError: it could not be written.
        """
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def _write(self, progress: Progress, tensors: Mapping[str, Tensor]) -> Path:
        document = save_checkpoint(self._folder, progress, tensors, self._manifest, keep=self._keep)
        self._saved(document)
        return document


def save_checkpoint(
    folder: Path,
    progress: Progress,
    tensors: Mapping[str, Tensor],
    resume_check: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint into `folder`, then remove all but the newest `keep`.

    Raises:
        UserError: it does not fit on the disk; the checkpoints that are there stay.
    """
    name = f"step-{progress.step:08d}"
    path, document = folder / f"{name}.safetensors", folder / f"{name}.json"
    _make_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    try:
        with appearing(path) as temporary:
            save_file(_savable(tensors), temporary)
            checksum = sha256_of(temporary)
        content = {
            "schema": SCHEMA,
            "sha256": checksum,
            "resume_check": dict(resume_check),
            "progress": asdict(progress),
        }
        write_json(document, content | {"checksum": _checksum(content)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} cannot be written: {_reason(error)}") from None
    _remove_old(folder, progress.step, keep)
    return document


def load_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint in `folder`, or None; damaged ones are named."""
    for document in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            return _load(document)
        except DAMAGED as error:
            warn(f"checkpoint {document.name} is damaged ({error}); trying the one before")
    return None


def read_document(document: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's JSON file, once it and the tensors prove undamaged.

    Raises:
        UserError: it is of another version.
        DAMAGED: it is.
    """
    content: dict[str, Any] = json.loads(document.read_text(encoding="utf-8"))
    told = content.pop("checksum")
    if _checksum(content) != told:
        raise ValueError(f"the checksum of {document.name} does not match")
    if content["schema"] != SCHEMA:
        raise UserError(
            f"checkpoint {document} has schema {content['schema']}, this version reads {SCHEMA};"
            " resume with the version that wrote it, or start anew with --overwrite"
        )
    path = document.with_suffix(".safetensors")
    if sha256_of(path) != content["sha256"]:
        raise ValueError(f"the checksum of {path.name} does not match")
    return content


def _load(document: Path) -> Checkpoint:
    content = read_document(document)
    tensors = load_file(document.with_suffix(".safetensors"))
    return Checkpoint(Progress(**content["progress"]), tensors, content["resume_check"])


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _make_room(folder: Path, needed: int) -> None:
    """See that `needed` bytes fit beside the newest checkpoint; older ones may have to go first."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("step-*.json"))[:-1]:
        if shutil.disk_usage(folder).free > needed * 1.02:
            return
        _remove(old)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        newest = max(folder.glob("step-*.json"), default=None)
        raise UserError(
            f"the disk of {folder} is full: a checkpoint needs {needed / 1e6:.0f} MB, and"
            f" {free / 1e6:.0f} MB are free;"
            f" {f'{newest.stem} is intact' if newest else 'none was saved before'}: make room and"
            " run the same command again"
        )


def _remove_old(folder: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` up to `step`; later ones were damaged, or they had been loaded."""
    documents = sorted(folder.glob("step-*.json"))
    until = [document for document in documents if document.stem <= f"step-{step:08d}"]
    for document in documents:
        if document not in until[-keep:]:
            _remove(document)
    kept = {document.stem for document in until[-keep:]}
    for path in folder.glob("step-*.safetensors"):
        if path.stem not in kept:
            path.unlink(missing_ok=True)


def _remove(document: Path) -> None:
    document.unlink(missing_ok=True)
    document.with_suffix(".safetensors").unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    full = "StorageFull" in str(error) or "code: 28" in str(error)
    return "No space left on device" if full else str(error)


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
