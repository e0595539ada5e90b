"""How much of the machine this process may use: cores by affinity and cgroup, memory by cgroup."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cpu_cores(cgroup: Path = CGROUP) -> int:
    """Return the number of cores this process may keep busy, at least 1.

    A container limited by `--cpus` still sees every core of its host; running one thread per
    visible core there makes them wait for each other. Reads cgroup v2 (`cpu.max`), then v1.
    """
    visible = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return visible if quota is None else max(1, min(visible, round(quota)))


def memory_bytes() -> int:
    """Return the memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Return how much memory this process may use before the kernel ends it.

    Reads cgroup v2 (`memory.max`), then v1, where no limit is a number beyond any machine.
    """
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(int((cgroup / name).read_text()), memory_bytes())
        except (OSError, ValueError):
            continue
    return memory_bytes()


def _quota(cgroup: Path) -> float | None:
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit_us / period_us if limit_us > 0 else None
