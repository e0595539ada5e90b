"""Save and find the state of a run: tensors as safetensors, the rest as JSON, no pickle.

A checkpoint is two files, `step-00000123.safetensors` and `step-00000123.json`. The JSON appears
last and carries the checksum of the tensors, so a checkpoint is either complete or not there.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alexmri.errors import UserError
from alexmri.files import appearing, sha256_of, write_json

SCHEMA = "alexmri.checkpoint/1"


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint read back: progress, tensors by name, and what the run was about."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    progress: Progress,
    tensors: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint into `folder`, then remove all but the newest `keep`."""
    name = f"step-{progress.step:08d}"
    path = folder / f"{name}.safetensors"
    with appearing(path) as temporary:
        save_file(_savable(tensors), temporary)
        checksum = sha256_of(temporary)
    document = folder / f"{name}.json"
    write_json(
        document,
        {
            "schema": SCHEMA,
            "sha256": checksum,
            "manifest": dict(manifest),
            "progress": asdict(progress),
        },
    )
    for old in sorted(folder.glob("step-*.json"))[:-keep]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return document


def load_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint in `folder`, or None; damaged ones are named."""
    for document in sorted(folder.glob("step-*.json"), reverse=True):
        try:
            return _load(document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"checkpoint {document.name} is damaged ({error}); trying the one before")
    return None


def _load(document: Path) -> Checkpoint:
    content = json.loads(document.read_text(encoding="utf-8"))
    if content["schema"] != SCHEMA:
        raise UserError(
            f"checkpoint {document} has schema {content['schema']}, this version reads {SCHEMA};"
            " resume with the version that wrote it, or start anew with --overwrite"
        )
    path = document.with_suffix(".safetensors")
    if sha256_of(path) != content["sha256"]:
        raise ValueError(f"the checksum of {path.name} does not match")
    return Checkpoint(Progress(**content["progress"]), load_file(path), content["manifest"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as named tensors: `PARAMETER.NAME`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser the state `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}/")
    }


def _savable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
