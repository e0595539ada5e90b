"""Checkpoints: exact, whole or known to be damaged, written in the background, few."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
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
    checkpoints_in,
    load_newest,
    save_checkpoint,
)
from alexmri.training.run_folder import claimed, remove_checkpoints

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


TWO_SAVES_AT_ONE_STEP = """
import sys
from pathlib import Path
import torch
from alexmri.training.checkpoint import Progress, save_checkpoint
for value in (1.0, 2.0):
    tensors = {"w": torch.full((3,), value)}
    save_checkpoint(
        Path(sys.argv[1]), Progress(step=123, loss_sum=value), tensors, {"data": "x"}, keep=1
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["*.safetensors", "*.json"])
def test_a_kill_between_two_saves_at_one_step_leaves_a_whole_one(
    tmp_path: Path, name: str, moment: str
) -> None:
    """The second one has a name of its own: the first goes when that is complete."""
    killer = Path(__file__).parents[1] / "bench" / "kill_in_write"
    path = os.pathsep.join([str(killer), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", TWO_SAVES_AT_ONE_STEP, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "KILL_IN_WRITE": f"{name}:2:{moment}"},
    )
    assert done.returncode == -signal.SIGKILL
    with claimed(tmp_path):
        found = load_newest(tmp_path, pytest.fail)
        assert found
        complete = (name, moment) == ("*.json", "after")
        assert found.progress.loss_sum == found.tensors["w"][0] == (2.0 if complete else 1.0)
        # The next save clears away what the kill left.
        save_checkpoint(tmp_path, Progress(step=123), {"w": torch.zeros(3)}, {}, keep=1)
        assert len(list(tmp_path.iterdir())) == 2
        again = load_newest(tmp_path, pytest.fail)
        assert again
        assert again.tensors["w"][0] == 0


def test_checkpoints_of_one_step_are_in_order_and_count_as_one(tmp_path: Path) -> None:
    checkpoint(tmp_path, 100)
    names = []
    for _ in range(12):
        names.append(checkpoint(tmp_path, 123).stem)
        assert checkpoints_in(tmp_path)[-1].stem == names[-1]
    assert names[:2] == ["step-00000123", "step-00000123-1"]
    assert [path.stem for path in checkpoints_in(tmp_path)] == ["step-00000100", names[-1]]
    checkpoint(tmp_path, 124)
    assert [path.stem for path in checkpoints_in(tmp_path)] == [names[-1], "step-00000124"]
    checkpoint(tmp_path, 100_000_000)
    assert checkpoints_in(tmp_path)[-1].stem == "step-100000000"
    (tmp_path / "step-by-step.json").write_text("somebody's")
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-by-step.json"]


def test_numbers_count_and_not_letters(tmp_path: Path) -> None:
    for _ in range(11):
        last = checkpoint(tmp_path, 5, keep=1)
    assert last.stem == "step-00000005-10"
    shutil.copy(last, tmp_path / "step-00000005-9.json")
    shutil.copy(last.with_suffix(".safetensors"), tmp_path / "step-00000005-9.safetensors")
    assert checkpoints_in(tmp_path)[-1] == last


@pytest.mark.parametrize("text", ["null", "[]", "1", '"x"', "", "[" * 200_000, '{"a":' * 200_000])
def test_a_json_file_that_is_no_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, text: str
) -> None:
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2).write_text(text)
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found
    assert found.progress.step == 1
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("step", -1, "a wrong 'step'"),
        ("step", "2", "a wrong 'step'"),
        ("step", 2.5, "a wrong 'step'"),
        ("step", True, "a wrong 'step'"),
        ("epoch", 0, "a wrong 'epoch'"),
        ("loss_sum", None, "a wrong 'loss_sum'"),
        ("history", {}, "a wrong 'history'"),
        ("history", [[]], "a wrong 'history.0'"),
        ("history", [{"epoch": "one"}], "a wrong 'history.0.epoch'"),
        ("learning_rate_factor", 0, "a wrong 'learning_rate_factor'"),
        ("unknown", 1, "a wrong 'unknown'"),
        ("step", None, "a wrong 'step'"),
    ],
)
def test_progress_of_another_form_is_damage_also_with_the_right_checksum(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    checkpoint(tmp_path, 1)
    json_file = checkpoint(tmp_path, 2)
    content = json.loads(json_file.read_text())
    content["progress"][key] = value
    seal(json_file, content)
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found
    assert found.progress.step == 1
    assert words in warnings[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": None},
        {"progress": {}},
        {"resume_check": None},
        {"resume_check": {"settings": []}},
        {"sha256": None},
        {"sha256": 5},
    ],
)
def test_content_of_another_form_is_damage_too(tmp_path: Path, changes: dict[str, object]) -> None:
    checkpoint(tmp_path, 1)
    json_file = checkpoint(tmp_path, 2)
    seal(json_file, json.loads(json_file.read_text()) | changes)
    warnings: list[str] = []
    found = load_newest(tmp_path, warnings.append)
    assert found
    assert found.progress.step == 1
    assert len(warnings) == 1


def seal(json_file: Path, content: dict[str, object]) -> None:
    """Write the content of a checkpoint's JSON file with the checksum that belongs to it."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(json_file, content | {"checksum": checksum})


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
