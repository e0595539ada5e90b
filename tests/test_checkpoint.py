"""Checkpoints: exact, whole or known to be damaged, written in the background, few."""

import hashlib
import json
import random
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alexmri.errors import UserError
from alexmri.files import write_json
from alexmri.training import checkpoint as module
from alexmri.training.checkpoint import (
    CheckpointWriter,
    Progress,
    load_newest,
    save_checkpoint,
)
from alexmri.training.run_folder import claimed

Usage = namedtuple("Usage", "total used free")


def checkpoint(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"network/w": torch.full((3,), float(step)), "scale": torch.tensor(2.0)}
    progress = Progress(step=step, loss_sum=0.1 + 0.2, history=[{"epoch": 1.0}])
    return save_checkpoint(folder, progress, tensors, {"data": "x"}, keep=keep)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7)
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.progress == Progress(step=7, loss_sum=0.1 + 0.2, history=[{"epoch": 1.0}])
    assert torch.equal(found.tensors["network/w"], torch.full((3,), 7.0))
    assert found.resume_check == {"data": "x"}


def test_the_newest_stay_and_older_ones_go(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}.{suffix}" for step in (10, 100) for suffix in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "garble", "alter"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, damage: str
) -> None:
    checkpoint(tmp_path, 1)
    json_file = checkpoint(tmp_path, 2)
    tensors = json_file.with_suffix(".safetensors")
    data = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "remove":
        tensors.unlink()
    elif damage == "garble":
        json_file.write_text("{")
    else:  # still JSON, but another number
        json_file.write_text(json_file.read_text().replace('"epoch": 1.0', '"epoch": 3.0'))
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found is not None
    assert found.progress.step == 1
    assert "step-00000002.json is damaged" in warnings[0]


def test_no_checkpoint_is_none_and_a_future_one_is_refused(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nowhere", pytest.fail) is None
    content = {"schema": "alexmri.checkpoint/9"}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(tmp_path / "step-00000001.json", content | {"checksum": checksum})
    with pytest.raises(UserError, match="has schema alexmri.checkpoint/9"):
        load_newest(tmp_path, pytest.fail)


def test_safetensors_reads_a_checkpoint_without_us(tmp_path: Path) -> None:
    json_file = checkpoint(tmp_path, 1)
    assert set(load_file(json_file.with_suffix(".safetensors"))) == {"network/w", "scale"}


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    json_file = checkpoint(tmp_path, 2)
    generator = random.Random(0)  # noqa: S311
    for path in (json_file, json_file.with_suffix(".safetensors")):
        whole = path.read_bytes()
        for _ in range(200):
            data = bytearray(whole)
            if generator.random() < 0.3:
                del data[generator.randrange(len(data)) :]
            else:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            path.write_bytes(data)
            found = load_newest(tmp_path, lambda line: None)
            assert found is not None
            # White space between JSON's words may change and nothing is lost.
            assert found.progress == Progress(
                step=found.progress.step, loss_sum=0.1 + 0.2, history=[{"epoch": 1.0}]
            )
            if path.suffix == ".safetensors":
                assert found.progress.step == 1
        path.write_bytes(whole)


def test_a_later_checkpoint_that_was_not_used_goes_with_the_next_save(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        checkpoint(tmp_path, step, keep=5)
    (tmp_path / "step-00000009.json").write_text("{")
    (tmp_path / "step-00000007.safetensors").write_bytes(b"an orphan")
    checkpoint(tmp_path, 3)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == [
        "step-00000002",
        "step-00000003",
    ]
    assert len(list(tmp_path.iterdir())) == 4


def test_where_a_second_one_does_not_fit_the_first_stays_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(100, 90, 10))
    with pytest.raises(
        UserError, match=r"a checkpoint needs \d+ MB, .* are free; step-00000001 is"
    ):
        checkpoint(tmp_path, 2)
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.progress.step == 1


def test_a_full_disk_takes_older_checkpoints_before_it_takes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        checkpoint(tmp_path, step, keep=3)

    def free(folder: Path) -> Usage:
        return Usage(100, 0, 10 if len(list(folder.glob("*.json"))) > 1 else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", free)
    checkpoint(tmp_path, 4, keep=3)
    assert sorted(path.stem[-1] for path in tmp_path.glob("*.json")) == ["3", "4"]


def test_the_step_waits_for_a_copy_and_not_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    real = module.save_file

    def slow_disk(tensors: dict[str, torch.Tensor], path: Path) -> None:
        assert gate.wait(60)
        real(tensors, path)

    monkeypatch.setattr(module, "save_file", slow_disk)
    told: list[Path] = []
    writer = CheckpointWriter(tmp_path, {"data": "x"}, keep=2, saved=told.append)
    weight, progress = torch.ones(3), Progress(step=5)
    writer.save(progress, {"weight": weight}, {"best": torch.zeros(3)})
    assert writer.busy
    weight.add_(1)  # the training goes on
    progress.step = 6
    gate.set()
    assert writer.wait() == told[0]
    assert not writer.busy
    found = load_newest(tmp_path, pytest.fail)
    assert found is not None
    assert found.progress.step == 5
    assert torch.equal(found.tensors["weight"], torch.ones(3))


def test_what_went_wrong_in_the_background_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path, {}, keep=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(100, 100, 0))
    writer.save(Progress(), {"weight": torch.ones(3)}, {})
    with pytest.raises(UserError, match="is full"):
        writer.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexmri.training.run_folder.DYING_SECONDS", 0.0)
    (tmp_path / ".model.json.0123abcd.tmp").write_text("what a killed one left")
    (tmp_path / ".mine.tmp").write_text("somebody's")
    with claimed(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]
        with pytest.raises(UserError, match="another training is writing to"), claimed(tmp_path):
            pass
    with claimed(tmp_path):
        pass
