"""How SageMaker carries checkpoints to S3 while a training runs."""

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .container import Container

# Nobody says how often the platform looks.
SECONDS_BETWEEN = 3.0


class CheckpointSync(threading.Thread):
    """Mirrors the checkpoint folders of all hosts to one folder in S3 as long as containers run.

    New and changed files are copied as they are at that moment, finished or not; what vanishes from
    a host vanishes from S3. Files of several hosts with one name overwrite each other. After the
    last container's end nothing is copied: what was written in the last seconds is lost. Files that
    others put into S3 meanwhile do not come to the hosts.
    """

    def __init__(self, locals_: Sequence[Path], s3: Path, containers: Sequence[Container]) -> None:
        super().__init__(daemon=True)
        self._locals = locals_
        self._s3 = s3
        self._containers = containers
        # What was restored before the start counts as seen, so that its end is noticed.
        restored = (path for path in s3.rglob("*") if path.is_file())
        self._seen = dict.fromkeys((path.relative_to(s3) for path in restored), (0, 0))
        self.start()

    def run(self) -> None:
        while any(container.runs for container in self._containers):
            self._mirror()
            time.sleep(SECONDS_BETWEEN)

    def _mirror(self) -> None:
        now: dict[Path, tuple[int, int]] = {}
        for local in self._locals:
            for path in (path for path in local.rglob("*") if path.is_file()):
                name = path.relative_to(local)
                try:
                    facts = path.stat()
                    now[name] = (facts.st_mtime_ns, facts.st_size)
                    if self._seen.get(name) != now[name]:
                        (self._s3 / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, self._s3 / name)
                except FileNotFoundError:  # it vanished while it was looked at
                    now.pop(name, None)
        for name in self._seen.keys() - now.keys():
            (self._s3 / name).unlink(missing_ok=True)
        self._seen = now
