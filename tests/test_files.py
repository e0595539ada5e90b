"""Files that cannot be written: one sentence, the old content, and nothing half written."""

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alexmri.errors import UserError
from alexmri.files import (
    WriteError,
    appearing,
    append_text,
    filling,
    remove_leftovers,
    write_atomically,
    write_json,
)
from alexmri.model.alexnet import build
from alexmri.model.bundle import load_bundle
from alexmri.tracking import MetricsFile
from alexmri.training.checkpoint import Progress, load_newest, save_checkpoint

from . import bundles

FULL = r" cannot be written: No space left on device \(\d+\.\d MB free\); make room and run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        reason = f"no tmpfs can be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def tensors(path: Path) -> None:
    with appearing(path) as temporary:
        save_file({"a": torch.zeros(500_000)}, temporary)


def text(path: Path) -> None:
    write_atomically(path, "x" * 2_000_000)


def json_file(path: Path) -> None:
    write_json(path, ["x" * 2_000_000])


def array(path: Path) -> None:
    with appearing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.zeros(500_000))


def line(path: Path) -> None:
    append_text(path, "x" * 2_000_000)


WRITERS = [tensors, text, json_file, array, line]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_sentence_and_what_was_there_stays(
    small_disk: Path, write: Callable[[Path], None]
) -> None:
    path = small_disk / "file"
    path.write_text("old")
    with pytest.raises(WriteError, match=rf"^{path} cannot be written: .* MB free\); make room"):
        write(path)
    assert path.read_text() == "old"
    assert [each.name for each in small_disk.iterdir()] == ["file"]
    with pytest.raises(UserError):
        write(small_disk / "new" / "file")
    assert [each for each in small_disk.rglob("*") if each.is_file() and each != path] in (
        [],
        [small_disk / "new" / "file"],  # the empty record to which a line is added
    )


def test_a_model_that_does_not_fit_on_the_disk_leaves_the_old_one(small_disk: Path) -> None:
    small = np.zeros(100, dtype=np.uint8).tobytes()
    (small_disk / "model.safetensors").write_bytes(small)
    network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
    with pytest.raises(UserError, match=rf"model\.safetensors{FULL}"):
        bundles.save(small_disk, network, ("A", "B"))
    assert (small_disk / "model.safetensors").read_bytes() == small
    assert [each.name for each in small_disk.iterdir()] == ["model.safetensors"]


def test_a_record_that_does_not_fit_keeps_whole_lines(small_disk: Path) -> None:
    record = MetricsFile(small_disk / "metrics.jsonl", [{"epoch": 1.0}])
    (small_disk / "filler").write_bytes(bytes(900_000))
    with pytest.raises(UserError, match=rf"metrics\.jsonl{FULL}"):
        record.append({f"figure {n}": 0.5 for n in range(50_000)})
    assert (small_disk / "metrics.jsonl").read_text() == '{"epoch": 1.0}\n'


def test_a_folder_of_files_that_do_not_fit_does_not_appear(small_disk: Path) -> None:
    def fill() -> None:
        with filling(small_disk / "demo") as new:
            (new / "1.bin").write_bytes(bytes(500_000))
            (new / "2.bin").write_bytes(bytes(900_000))

    with pytest.raises(UserError, match=rf"demo{FULL}"):
        fill()
    assert list(small_disk.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(step: int, count: int) -> None:
        progress = Progress(step=step)
        save_checkpoint(small_disk, progress, {"w": torch.zeros(count)}, {"settings": {}}, keep=1)

    save(1, 100)
    usage = shutil.disk_usage(small_disk)
    # What was free when the writing began is taken by another program.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**9))
    with pytest.raises(UserError, match=r"step-00000002\.safetensors cannot be written: No space"):
        save(2, 1_000_000)
    found = load_newest(small_disk, pytest.fail)
    assert found
    assert found.progress.step == 1
    assert len(list(small_disk.iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room within the quota"),
        (errno.EROFS, "choose a folder on a disk that can be written"),
        (errno.EACCES, f"let user {os.getuid()} write to"),
        (errno.EIO, "check the disk"),
        (errno.EFBIG, "raise the limit"),
    ],
)
def test_every_reason_has_its_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    def write() -> None:
        with appearing(tmp_path / "file"):
            raise OSError(number, "untranslated")

    with pytest.raises(WriteError) as raised:
        write()
    assert f"file cannot be written: {os.strerror(number)}" in str(raised.value)
    assert remedy in str(raised.value)


def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for write in WRITERS:
            with pytest.raises(WriteError, match="cannot be written"):
                write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_place_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    for path in (tmp_path / "taken" / "file", tmp_path / "folder"):
        with pytest.raises(WriteError, match=rf"^{path} cannot be written: "):
            write_json(path, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "taken"]


def test_errors_of_other_files_and_of_networks_pass_unchanged(tmp_path: Path) -> None:
    def write(error: Exception) -> None:
        with appearing(tmp_path / "out" / "file"):
            raise error

    for error in (
        FileNotFoundError(errno.ENOENT, "no such file", str(tmp_path / "in" / "image.png")),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        ValueError("a mistake"),
    ):
        with pytest.raises(type(error)):
            write(error)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "text", "x")
        with appearing(tmp_path / "tensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        append_text(tmp_path / "lines", "x\n")
        network = build(classes=2, image_size=32, channels=1, dropout=0.5, seed=0)
        bundles.save(tmp_path / "model", network.eval(), ("A", "B"))
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in written} == dict.fromkeys(
        (path.name for path in written), oct(mode)
    )
    load_bundle(tmp_path / "model")


def test_what_a_killed_write_leaves_is_cleared_away(tmp_path: Path) -> None:
    for name in (".model.json.0123abcd.tmp", ".tmpA1b2C3", ".mine.tmp", ".tmp", "file"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", ".tmp", "file"]


def test_the_command_line_says_it_and_exits_with_2(small_disk: Path) -> None:
    """As root no permission is missing; the disk is full for everybody."""
    (small_disk / "filler").write_bytes(bytes(1 << 20))
    arguments = ["demo-data", str(small_disk / "demo")]
    done = subprocess.run(
        [sys.executable, "-c", "from alexmri.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert re.search(rf"error: .*demo{FULL}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
