"""What this process has to work with: cores, memory, shared memory, disk, packages."""

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mount itself is looked at


def cpu_cores(cgroup: Path = CGROUP, proc: Path = PROC) -> int:
    """Return the number of cores this process may keep busy, at least 1.

    A container limited by `--cpus` still sees every core of its host; running one thread per
    visible core there makes them wait for each other. Reads `cpu.max` (cgroup v2) and
    `cpu.cfs_quota_us` (v1) of this process's group and of all above it: the tightest counts.
    """
    visible = len(os.sched_getaffinity(0))
    quotas = [quota for group in cgroup_folders("cpu", cgroup, proc) for quota in _quotas(group)]
    return max(1, min(visible, round(min(quotas, default=visible))))


def ask_for_large_pages() -> None:
    """Have PyTorch ask the kernel for 2 MiB pages, where the machine has them.

    PyTorch reads this at its first allocation. Tensors above 32 MiB are new memory every time, and
    clearing that in pages of 4 KiB takes a twentieth of a training step.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def memory_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory_bytes(cgroup: Path = CGROUP, proc: Path = PROC) -> int:
    """Return how much memory this process may use before the kernel ends it.

    Reads `memory.max` (cgroup v2) and `memory.limit_in_bytes` (v1, where no limit is a number
    beyond any machine) of this process's group and of all above it.
    """
    limits = [
        int(text)
        for group in cgroup_folders("memory", cgroup, proc)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _read(group / name)).isdigit()
    ]
    return min([memory_bytes(), *limits])


def free_memory_bytes(cgroup: Path = CGROUP, proc: Path = PROC) -> int:
    """Return how much more memory this process may take; cached files count as free.

    The least of what the machine has left and what the limits of its cgroups (v2, v1) leave.
    """
    left = [usable_memory_bytes(cgroup, proc)]
    for line in _read(proc / "meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            left.append(int(amount.split()[0]) * 1024)
    for group in cgroup_folders("memory", cgroup, proc):
        cached = dict(line.split() for line in _read(group / "memory.stat").splitlines())
        for limit, used, name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, taken = _read(group / limit), _read(group / used)
            if most.isdigit() and taken.isdigit():
                left.append(int(most) - int(taken) + int(cached.get(name, "0")))
    return max(0, min(left))


def shared_memory_bytes(mount: Path = SHARED_MEMORY) -> int:
    """Return the size of /dev/shm; 0 where there is none."""
    return shutil.disk_usage(mount).total if mount.is_dir() else 0


def free_shared_memory_bytes(mount: Path = SHARED_MEMORY) -> int:
    """Return what is free of /dev/shm; 0 where there is none."""
    return shutil.disk_usage(mount).free if mount.is_dir() else 0


def free_disk_bytes(folder: Path) -> int:
    """Return what this user may still write on the disk of `folder`, which need not exist yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def resources_line(folder: Path) -> str:
    """Return the one line a job prints about what it has; `folder` is where it will write most."""
    cores = cpu_cores()
    memory, shared = size_text(usable_memory_bytes()), size_text(shared_memory_bytes())
    disk = size_text(free_disk_bytes(folder))
    return (
        f"resources: {cores} core{'s' if cores > 1 else ''}, {memory} memory, {shared} shared"
        f" memory, {disk} disk in {folder}"
    )


def size_text(count: int) -> str:
    """Return a number of bytes for people: `64 MiB`, `7.5 GiB`."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def cgroup_folders(controller: str, cgroup: Path = CGROUP, proc: Path = PROC) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those above it, in v2 and in v1.

    /proc/self/cgroup names the group as the host sees it. A container that sees only its own part
    of the tree does not find that name there, and its own group is the top folder.
    """
    names: dict[str, str] = {}
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        names |= dict.fromkeys(controllers.split(","), name)
    for top, tree in ((cgroup, ""), (cgroup / controller, controller)):
        group = top
        yield group
        for part in names.get(tree, "").split("/"):
            if part:
                group /= part
                yield group


def _quotas(group: Path) -> Iterator[float]:
    """Yield how many cores' worth of time `group` may use, where it has a limit."""
    limit, _, period = _read(group / "cpu.max").partition(" ")
    if limit.isdigit() and period.isdigit():
        yield int(limit) / int(period)
    limit, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if limit.isdigit() and period.isdigit():
        yield int(limit) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def installed_version(package: str) -> str:
    """Return the version of an installed package, or `unknown` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
