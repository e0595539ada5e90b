"""How much of the machine this process may use: CPU cores by affinity and by the cgroup's quota."""

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
