"""Checkpoints in S3: always a whole one, from one writer, and never in the training's way."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from alexmri.errors import UserError
from alexmri.s3 import Prefix, S3Error
from alexmri.settings import Settings
from alexmri.terminal import PlainTerminal
from alexmri.training.checkpoint import Progress, load_newest, save_checkpoint
from alexmri.training.checkpoint_sync import WRITER, S3CheckpointSync, open_checkpoint_sync

from .conftest import Bucket

# Seconds; far more than anything here needs, for machines under load.
PATIENCE = 20.0


class Notes(PlainTerminal):
    """Remembers what was said, and lets tests wait for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._heard = threading.Condition()

    def say(self, line: str) -> None:
        with self._heard:
            self.lines.append(line)
            self._heard.notify_all()

    def wait_for(self, words: str) -> None:
        with self._heard:
            found = self._heard.wait_for(lambda: any(words in x for x in self.lines), PATIENCE)
        assert found, self.lines

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ")]


class Machine:
    """A folder of checkpoints, and what keeps it in S3."""

    def __init__(self, folder: Path, url: str, keep: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.notes = Notes()
        self.sync = S3CheckpointSync(url, folder, self.notes, keep=keep)

    def save(self, step: int, keep: int = 2) -> Path:
        tensors = {"network/w": torch.full((3,), float(step))}
        path = save_checkpoint(self.folder, Progress(step=step), tensors, {}, keep=keep)
        self.sync.saved(path)
        return path

    def close(self) -> None:
        self.sync.close(within=PATIENCE)

    def newest(self) -> int:
        found = load_newest(self.folder, pytest.fail)
        assert found
        assert found.tensors["network/w"][0] == found.progress.step
        return found.progress.step


@pytest.fixture
def machine(bucket: Bucket, tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def start(name: str, keep: int = 2) -> Machine:
        machines.append(Machine(tmp_path / name, bucket.url, keep))
        return machines[-1]

    yield start
    for machine in machines:
        machine.close()


def as_it_is(before: Mapping[str, Any]) -> None:
    """Go on from any checkpoint."""


def files(*steps: int) -> list[str]:
    return [f"step-{step:08d}.{end}" for step in steps for end in ("json", "safetensors")]


def wait_until_there(bucket: Bucket, *steps: int) -> None:
    """Wait for exactly these checkpoints, which must be whole whenever they are seen."""
    deadline = threading.Event()
    timer = threading.Timer(PATIENCE, deadline.set)
    timer.start()
    while not deadline.is_set():
        names = bucket.names()
        for name in names:
            if name.startswith("step-") and name.endswith(".json"):
                assert name.replace(".json", ".safetensors") in names
        if names == [*files(*steps), WRITER]:
            break
    timer.cancel()
    assert names == [*files(*steps), WRITER]


def test_another_machine_goes_on_where_the_first_stopped(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    for step in (5, 10, 15):
        first.save(step)
        wait_until_there(bucket, *((step - 5, step) if step > 5 else (step,)))
    first.close()
    assert first.notes.lines == [f"checkpoint step-00000015 is in {bucket.url}"]
    assert bucket.names() == files(10, 15)

    second = machine("b")
    second.sync.restore()
    assert sorted(path.name for path in second.folder.iterdir()) == files(15)
    assert second.newest() == 15
    assert second.notes.lines == [f"checkpoint step-00000015 is restored from {bucket.url}"]


def test_what_others_keep_below_the_prefix_stays(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    for name in ("notes.txt", "model/step-1.json"):
        bucket.put(name, b"mine")
    first = machine("a")
    first.save(1)
    first.close()
    second = machine("b")
    second.sync.clear()
    second.close()
    assert bucket.names() == ["model/step-1.json", "notes.txt"]


def test_the_folder_wins_unless_s3_knows_more(machine: Callable[..., Machine]) -> None:
    first = machine("a")
    for step in (5, 10):
        first.save(step)
    first.close()
    second = machine("b")
    for step, expected in ((7, 10), (12, 12)):
        shutil.rmtree(second.folder)
        save_checkpoint(
            second.folder, Progress(step=step), {"network/w": torch.full((3,), step)}, {}, keep=2
        )
        second.sync.restore()
        assert second.newest() == expected
    (second.folder / files(12)[1]).write_bytes(b"rot")
    second.sync.restore()
    assert load_newest(second.folder, second.notes.warn).progress.step == 10
    assert second.notes.warnings[0].startswith("warning: checkpoint step-00000012.json is damaged")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "garble"])
def test_a_damaged_checkpoint_in_s3_is_named_and_the_one_before_taken(
    machine: Callable[..., Machine], bucket: Bucket, damage: str
) -> None:
    first = machine("a")
    for step in (5, 10):
        first.save(step)
        wait_until_there(bucket, *((5, 10) if step == 10 else (5,)))
    first.close()
    json_file, tensors = files(10)
    data = bytearray(bucket.read(tensors))
    if damage == "remove":
        bucket.remove(tensors)
    elif damage == "garble":
        bucket.put(json_file, b"{")
    elif damage == "truncate":
        bucket.put(tensors, data[:-1])
    else:
        data[-1] ^= 1
        bucket.put(tensors, bytes(data))

    second = machine("b")
    second.sync.restore()
    assert second.newest() == 5
    assert sorted(path.name for path in second.folder.iterdir()) == files(5)
    assert f"checkpoint step-00000010 in {bucket.url} is damaged" in second.notes.warnings[0]
    second.save(7)
    second.close()
    assert bucket.names() == files(5, 7)  # what the run goes on to write counts


def test_while_s3_is_away_training_goes_on_and_says_so_once(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)
    bucket.server.stop()
    try:
        first.save(10)
        first.notes.wait_for("warning: checkpoint step-00000010 is not in S3")
        first.save(15)
    finally:
        bucket.server.start()
    first.save(20)
    first.notes.wait_for("uploading works again: step-000000")
    first.close()
    assert len(first.notes.warnings) == 1
    assert f"{bucket.url}: S3: AWS cannot be reached" in first.notes.warnings[0]
    assert "training goes on" in first.notes.warnings[0]
    assert files(20) == bucket.names()[-2:]


def test_what_s3_refuses_stops_nothing(machine: Callable[..., Machine], bucket: Bucket) -> None:
    first = machine("a")
    policy = {"Bucket": bucket.name}
    bucket.remove(WRITER)
    bucket.client.delete_bucket(**policy)
    first.save(5)
    first.notes.wait_for("is not in S3")
    assert "there is no such bucket" in first.notes.warnings[0]
    bucket.client.create_bucket(**policy)


def test_a_slow_s3_gets_the_newest_and_leaves_out_what_came_between(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    bucket.server.pause()
    try:
        for step in (5, 10, 15, 20):  # none of these waits, or the test would never end
            first.save(step)
    finally:
        bucket.server.resume()
    first.close()
    assert bucket.names()[-2:] == files(20)
    assert first.notes.warnings == []


def test_the_end_waits_only_as_long_as_it_may(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)
    bucket.server.pause()
    try:
        first.save(10)
        first.sync.close(within=0.1)
    finally:
        bucket.server.resume()
    assert first.notes.warnings == [
        f"warning: the last checkpoint is not in {bucket.url}; the newest sent is step-00000005"
    ]
    # It may still be writing, so it keeps the prefix; the next training takes it over.
    assert WRITER in bucket.names()


def test_a_state_the_run_went_back_from_goes(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    for step in (10, 15):
        first.save(step)
        wait_until_there(bucket, *((10, 15) if step == 15 else (10,)))
    for name in files(15):
        (first.folder / name).unlink()
    first.save(12)
    wait_until_there(bucket, 10, 12)


def test_a_killed_training_makes_way_for_its_successor_at_once(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)  # and no more is heard of it: writer.json stays
    second = machine("b")
    second.sync.begin(as_it_is)
    assert second.newest() == 5
    taken = [line for line in second.notes.lines if "is taken over from the training on" in line]
    assert len(taken) == 1
    assert " since 20" in taken[0]
    second.save(6)
    second.close()
    assert bucket.names() == files(5, 6)


def test_two_trainings_never_mix_their_checkpoints(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)
    second = machine("b")
    second.sync.begin(as_it_is)
    for step in (10, 15):
        first.save(step)
    first.notes.wait_for("was taken over by the training on ")
    second.save(6)
    wait_until_there(bucket, 5, 6)
    first.save(20)
    first.close()
    assert len([line for line in first.notes.warnings if "taken over" in line]) == 1
    assert first.notes.warnings[0].endswith("this training goes on without uploading")
    wait_until_there(bucket, 5, 6)  # also writer.json, which is the second one's
    second.close()
    assert bucket.names() == files(5, 6)


def test_who_only_looks_takes_nothing_over(machine: Callable[..., Machine], bucket: Bucket) -> None:
    """A training that is refused for its settings has read the checkpoints, and no more."""
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)
    second = machine("b")
    second.sync.restore()
    second.close()
    first.save(10)
    wait_until_there(bucket, 5, 10)
    assert first.notes.warnings == []


def test_a_run_that_cannot_go_on_takes_nothing_over(machine: Callable[..., Machine]) -> None:
    first = machine("a")
    first.save(5)
    first.close()
    alive, second = machine("b"), machine("c")
    alive.sync.begin(as_it_is)

    def refuse(before: Mapping[str, Any]) -> None:
        raise UserError("other settings")

    with pytest.raises(UserError, match="other settings"):
        second.sync.begin(refuse)
    alive.save(10)
    alive.close()
    assert alive.notes.warnings == []


def test_what_was_sent_until_the_prefix_was_taken_over_is_gone_on_from(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)

    def save_another(before: Mapping[str, Any]) -> None:
        first.save(10)
        wait_until_there(bucket, 5, 10)

    second = machine("b")
    second.sync.begin(save_another)
    assert second.newest() == 10


def test_a_machine_without_the_older_checkpoints_keeps_them_in_s3(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a", keep=3)
    for step in (5, 10, 15):
        first.save(step, keep=3)
        first.notes.lines.clear()
        wait_until_there(bucket, *range(5, step + 1, 5))
    first.close()
    second = machine("b", keep=3)
    second.sync.begin(as_it_is)
    second.save(20, keep=3)
    second.close()
    assert bucket.names() == files(10, 15, 20)


def test_who_removes_the_writer_ends_its_uploads(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    first.save(5)
    wait_until_there(bucket, 5)
    bucket.remove(WRITER)
    first.save(10)
    first.notes.wait_for("by somebody who removed writer.json; this training goes on")
    first.close()
    assert bucket.names() == files(5)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"null", b"[" * 200_000, b'{"host": [1]}'])
def test_a_writer_that_makes_no_sense_is_taken_over_too(
    machine: Callable[..., Machine], bucket: Bucket, content: bytes
) -> None:
    bucket.put(WRITER, content)
    first = machine("a")
    first.sync.begin(as_it_is)
    assert any("is taken over from the training on" in line for line in first.notes.lines)


def test_a_claim_whose_answer_was_lost_is_recognised(
    machine: Callable[..., Machine], bucket: Bucket
) -> None:
    first = machine("a")
    lost: list[int] = []

    def lose_one_answer(response: object, **_: object) -> int | None:
        lost.append(1)
        return 0 if len(lost) == 1 else None  # botocore sends the request again

    events = first.sync._s3._client.meta.events
    events.register_first("needs-retry.s3.PutObject", lose_one_answer)
    first.sync.begin(as_it_is)
    assert len(lost) == 2
    assert not any("taken over" in line for line in first.notes.lines)
    first.save(5)
    wait_until_there(bucket, 5)


def test_there_is_one_conditional_write_in_a_run(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = Prefix.write

    def write(self: Prefix, name: str, data: bytes, *, replacing: str | None = None) -> str:
        written.append(name)
        return real(self, name, data, replacing=replacing)

    monkeypatch.setattr(Prefix, "write", write)
    first = machine("a")
    first.sync.begin(as_it_is)
    for step in (5, 10, 15):
        first.save(step)
        first.sync.begin(as_it_is)
    first.close()
    assert written == [WRITER]


def test_s3_holds_a_whole_checkpoint_while_one_of_the_same_step_is_sent(
    machine: Callable[..., Machine],
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a kill between the upload of the tensors and that of the JSON file leaves it."""
    first = machine("a")
    first.save(5, keep=1)
    wait_until_there(bucket, 5)
    real = Prefix.upload

    def dies(self: Prefix, file: Any, name: str) -> None:
        if name.endswith(".json"):
            raise S3Error("the machine is gone")
        real(self, file, name)

    monkeypatch.setattr(Prefix, "upload", dies)
    first.save(5, keep=1)
    first.notes.wait_for("the machine is gone")
    second = machine("b")
    second.sync.restore()
    assert second.newest() == 5
    assert second.notes.warnings == []


def test_without_the_setting_nothing_happens(tmp_path: Path) -> None:
    sync = open_checkpoint_sync(Settings(), tmp_path, PlainTerminal())
    sync.begin(as_it_is)
    sync.saved(tmp_path / "step-1.json")
    sync.clear()
    sync.close(within=0)
    assert list(tmp_path.iterdir()) == []
