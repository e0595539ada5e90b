"""What a process may use of its machine: limits of containers, and checks before they are met."""

import os
from pathlib import Path

import pytest

from alexmri.contract.resources import (
    cpu_cores,
    free_disk_bytes,
    free_memory_bytes,
    free_shared_memory_bytes,
    memory_bytes,
    resources_line,
    shared_memory_bytes,
    size_text,
    usable_memory_bytes,
)
from alexmri.data.dataset import Dataset, load_dataset
from alexmri.errors import UserError
from alexmri.settings import Layer, resolve
from alexmri.terminal import PlainTerminal

from .conftest import ImageMaker

CORES = len(os.sched_getaffinity(0))
MEBIBYTE = 2**20
# Version 2 as a host's tree shows it, version 1 likewise, and a machine that has both.
V2_NESTED = "0::/kubepods/pod7/train\n"
V1_NESTED = "4:memory:/docker/a1b2\n3:cpuset:/docker/a1b2\n2:cpu,cpuacct:/docker/a1b2\n0::/\n"


class Tree:
    """Made-up /proc and /sys/fs/cgroup folders."""

    def __init__(self, root: Path) -> None:
        self.cgroup = root / "cgroup"
        self.proc = root / "proc"

    def write(self, own_group: str, files: dict[str, str], available_kib: int = 0) -> "Tree":
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "cgroup").write_text(own_group)
        if available_kib:
            text = f"MemTotal: 1 kB\nMemAvailable: {available_kib} kB\n"
            (self.proc / "meminfo").write_text(text)
        for name, content in files.items():
            (self.cgroup / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cgroup / name).write_text(content)
        return self


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("own_group", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CORES),
        ("", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES),
        (V2_NESTED, {"kubepods/pod7/train/cpu.max": "100000 100000"}, 1),
        (
            V2_NESTED,
            {
                "kubepods/cpu.max": "max 100000",
                "kubepods/pod7/cpu.max": "100000 100000",
                "kubepods/pod7/train/cpu.max": "6400000 100000",
            },
            1,
        ),
        (
            V1_NESTED,
            {
                "cpu/docker/a1b2/cpu.cfs_quota_us": "100000",
                "cpu/docker/a1b2/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (V2_NESTED, {"kubepods/pod8/cpu.max": "100000 100000"}, CORES),
        ("0::/../../elsewhere\n", {"cpu.max": "100000 100000"}, 1),
        ("", {}, CORES),
    ],
)
def test_cores_follow_the_tightest_quota(
    tree: Tree, own_group: str, files: dict[str, str], cores: int
) -> None:
    tree.write(own_group, files)
    assert cpu_cores(tree.cgroup, tree.proc) == cores


@pytest.mark.parametrize(
    ("own_group", "files", "mebibytes"),
    [
        ("0::/\n", {"memory.max": f"{64 * MEBIBYTE}\n"}, 64),
        ("", {"memory/memory.limit_in_bytes": f"{64 * MEBIBYTE}\n"}, 64),
        # A container of version 1: the group's name is the host's, its files are on top.
        (V1_NESTED, {"memory/memory.limit_in_bytes": f"{64 * MEBIBYTE}"}, 64),
        (V1_NESTED, {"memory/docker/a1b2/memory.limit_in_bytes": f"{64 * MEBIBYTE}"}, 64),
        (
            V2_NESTED,
            {
                "kubepods/memory.max": f"{96 * MEBIBYTE}",
                "kubepods/pod7/memory.max": f"{64 * MEBIBYTE}",
                "kubepods/pod7/train/memory.max": "max",
            },
            64,
        ),
    ],
)
def test_memory_follows_the_tightest_limit(
    tree: Tree, own_group: str, files: dict[str, str], mebibytes: int
) -> None:
    tree.write(own_group, files)
    assert usable_memory_bytes(tree.cgroup, tree.proc) == mebibytes * MEBIBYTE


def test_memory_without_a_limit_is_the_machines(tree: Tree) -> None:
    tree.write(V1_NESTED, {"memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert usable_memory_bytes(tree.cgroup, tree.proc) == memory_bytes()


def test_free_memory_is_what_is_available_within_the_limit(tree: Tree) -> None:
    tree.write("0::/\n", {"memory.max": f"{64 * MEBIBYTE}"}, available_kib=16 * 1024)
    assert free_memory_bytes(tree.cgroup, tree.proc) == 16 * MEBIBYTE
    (tree.cgroup / "memory.max").write_text(f"{8 * MEBIBYTE}")
    assert free_memory_bytes(tree.cgroup, tree.proc) == 8 * MEBIBYTE
    (tree.proc / "meminfo").unlink()
    assert free_memory_bytes(tree.cgroup, tree.proc) == 8 * MEBIBYTE


def test_shared_memory_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert 0 < free_shared_memory_bytes(tmp_path) <= shared_memory_bytes(tmp_path)
    assert shared_memory_bytes(tmp_path / "missing") == 0
    assert free_shared_memory_bytes(tmp_path / "missing") == 0


def test_the_disk_of_a_folder_to_come_is_that_of_its_parent(tmp_path: Path) -> None:
    found = free_disk_bytes(tmp_path / "not" / "yet")
    assert found == pytest.approx(free_disk_bytes(tmp_path), rel=0.1)
    assert found > 0


def test_the_resources_stand_on_one_line(tmp_path: Path) -> None:
    line = resources_line(tmp_path)
    assert line.startswith(f"resources: {cpu_cores()} core")
    assert f"{size_text(usable_memory_bytes())} memory, " in line
    assert line.endswith(f" disk in {tmp_path}")
    assert size_text(64 * MEBIBYTE) == "64 MiB"
    assert size_text(7680 * MEBIBYTE) == "7.5 GiB"


def load(folder: Path) -> Dataset:
    settings = resolve([Layer("test", {"image_size": "64", "channels": "3"})]).settings
    return load_dataset({"train": folder}, settings, workers=1, terminal=PlainTerminal())


def test_too_small_a_disk_is_told_before_anything_is_decoded(
    make_images: ImageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_images(*(f"{label}/{i}.png" for label in "AB" for i in range(100)))
    (root / "A" / "0.png").write_bytes(b"not decoded")
    monkeypatch.setattr("alexmri.data.decode.free_disk_bytes", lambda folder: MEBIBYTE)
    # 200 images x 3 channels x 64 x 64 pixels
    words = f"need 2 MiB on disk, and {tmp_path / 'cache'} has 1 MiB; .* in ALEXMRI_CACHE_DIR"
    with pytest.raises(UserError, match=words):
        load(root)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}
