"""Save and find the state of a run: tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is two files, `step-00000123.safetensors` and `step-00000123.json`. The JSON appears
last and carries the checksums of both, so a checkpoint is complete, or known to be damaged. A
second one at the same step is `step-00000123-1`: no file of a checkpoint is ever replaced.
"""

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexmri.errors import UserError
from alexmri.files import appearing, require_json_object, sha256_of, sha256_of_json, write_json
from alexmri.training.run_folder import age_of, in_order

SCHEMA = "alexmri.checkpoint/2"
Count = Annotated[int, Field(ge=0)]


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was saved; the message says what is wrong, not which one."""


@dataclass(slots=True)
class Progress:
    """Where a run stands: everything but tensors.

    `step` counts optimiser steps of the whole run; the next one is number `step`. The sums belong
    to the epoch under way.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    epoch: Annotated[int, Field(ge=1)] = 1
    step: Count = 0
    step_in_epoch: Count = 0
    loss_sum: float = 0.0
    right: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: Count = 0
    tracking_id: str | None = None
    # How often the loss ran away, and what the learning rate is multiplied by since.
    recoveries: Count = 0
    learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0

    @classmethod
    def of(cls, values: object) -> "Progress":
        """Return what `asdict` returned of another; UserError where that cannot be."""
        if not isinstance(values, dict):
            raise UserError(f"its progress is {type(values).__name__}, not a JSON object")
        missing = [each.name for each in fields(cls) if each.name not in values]
        if missing:
            raise UserError(f"its progress lacks '{missing[0]}'")
        try:
            _CHECKED.validate_json(json.dumps(values))  # strictly it takes only JSON for a dict
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"its progress has a wrong '{place}': {first['msg']}") from None
        return cls(**values)  # not pydantic's copy, which makes floats of whole numbers


_CHECKED = TypeAdapter(Progress)


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
        saved: Callable[[Path], None] = lambda json_file: None,
    ) -> None:
        """Write into `folder`; `saved` is called with the JSON file of every new checkpoint."""
        self._folder = folder
        self._resume_check = resume_check
        self._keep = keep
        self._saved = saved
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

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
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in mutable.items()}
        state = copy.deepcopy(progress)
        self._writing = self._pool.submit(self._write, state, {**tensors, **immutable})

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
        json_file = save_checkpoint(
            self._folder, progress, tensors, self._resume_check, keep=self._keep
        )
        self._saved(json_file)
        return json_file


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
    json_file = folder / _new_name(progress.step, [path.name for path in folder.glob("step-*")])
    _make_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    tensor_file = json_file.with_suffix(".safetensors")
    with appearing(tensor_file) as temporary:
        save_file(_savable(tensors), temporary)
        checksum = sha256_of(temporary)
    content = {
        "schema": SCHEMA,
        "sha256": checksum,
        "resume_check": dict(resume_check),
        "progress": asdict(progress),
    }
    try:
        write_json(json_file, content | {"checksum": sha256_of_json(content)})
    except BaseException:
        tensor_file.unlink(missing_ok=True)
        raise
    _remove_old(folder, json_file, keep)
    return json_file


def load_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint in `folder`, or None; damaged ones are named."""
    for json_file in reversed(checkpoints_in(folder)):
        try:
            return _load(json_file)
        except DamagedCheckpointError as error:
            warn(f"checkpoint {json_file.name} is damaged ({error}); trying the one before")
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the JSON files of the checkpoints in `folder`, the oldest first."""
    return [folder / name for name in in_order(path.name for path in folder.glob("step-*.json"))]


def kept(names: Iterable[str], newest: str, keep: int) -> set[str]:
    """Return those of `names` that stay once the checkpoint of the file `newest` is complete.

    These are the files of the newest `keep` checkpoints, one for each step. Later ones than
    `newest` were damaged, or are of a state that the run has gone back from.
    """
    last = age_of(newest)
    steps: dict[int, tuple[int, int]] = {}
    files = in_order(names)
    for age in (age_of(name) for name in files if name.endswith(".json")):
        if age <= last:
            steps[age[0]] = age
    stay = [steps[step] for step in sorted(steps)][-keep:]
    return {name for name in files if age_of(name) in stay}


def read_checkpoint(json_file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's JSON file, once it and the tensors prove undamaged.

    Raises:
        DamagedCheckpointError: they are not.
        UserError: it is of another version.
    """
    try:
        content = require_json_object(json_file)
    except UserError as error:
        raise DamagedCheckpointError(str(error)) from None
    found = content.pop("checksum", None)
    if sha256_of_json(content) != found:
        raise DamagedCheckpointError(f"the checksum of {json_file.name} does not match")
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"checkpoint {json_file} has schema {content.get('schema')}, this version reads"
            f" {SCHEMA}; resume with the version that wrote it, or start anew with --overwrite"
        )
    tensor_file = json_file.with_suffix(".safetensors")
    try:
        whole = sha256_of(tensor_file) == content.get("sha256")
    except OSError as error:
        raise DamagedCheckpointError(f"{tensor_file.name}: {error.strerror}") from None
    if not whole:
        raise DamagedCheckpointError(f"the checksum of {tensor_file.name} does not match")
    return content


def is_whole(json_file: Path) -> bool:
    """Whether a checkpoint is undamaged; UserError where it is of another version."""
    try:
        read_checkpoint(json_file)
    except DamagedCheckpointError:
        return False
    return True


def _load(json_file: Path) -> Checkpoint:
    content = read_checkpoint(json_file)
    try:
        progress = Progress.of(content.get("progress"))
        tensors = load_file(json_file.with_suffix(".safetensors"))
    except (UserError, OSError, SafetensorError) as error:
        raise DamagedCheckpointError(str(error)) from None
    resume_check = content.get("resume_check")
    if not isinstance(resume_check, dict) or not isinstance(resume_check.get("settings", {}), dict):
        raise DamagedCheckpointError("it does not say which run it belongs to")
    return Checkpoint(progress, tensors, resume_check)


def _new_name(step: int, names: Iterable[str]) -> str:
    """Return the name of the next checkpoint's JSON file: one that no file there has."""
    numbers = [age_of(name)[1] for name in in_order(names) if age_of(name)[0] == step]
    return f"step-{step:08d}{f'-{max(numbers) + 1}' if numbers else ''}.json"


def _make_room(folder: Path, needed: int) -> None:
    """See that `needed` bytes fit beside the newest checkpoint; older ones may have to go first."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free > needed * 1.02:
        return
    there = checkpoints_in(folder)
    newest = next((each for each in reversed(there) if is_whole(each)), None)
    for old in there:
        if old != newest and shutil.disk_usage(folder).free <= needed * 1.02:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * 1.02:
        left = f"{newest.stem} is intact" if newest else "none was saved before"
        raise UserError(
            f"the disk of {folder} is full: a checkpoint needs {needed / 1e6:.0f} MB, and"
            f" {free / 1e6:.0f} MB are free; {left}: make room and run the same command again"
        )


def _remove_old(folder: Path, newest: Path, keep: int) -> None:
    names = in_order(path.name for path in folder.glob("step-*"))
    going = set(names) - kept(names, newest.name, keep)
    for name in sorted(going):  # a JSON file before its tensors
        (folder / name).unlink(missing_ok=True)


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
