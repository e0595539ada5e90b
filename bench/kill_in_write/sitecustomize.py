"""Kill the Python process that brings a file to its name: for bench/chaos.py and tests.

Python imports this module at its start where PYTHONPATH names its folder. KILL_IN_WRITE says which
write is the last one, as PATTERN:COUNT:MOMENT: the COUNT-th file whose name matches PATTERN, before
or after its temporary name becomes its own.
"""

import fnmatch
import os
import signal
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

PATTERN, COUNT, MOMENT = os.environ.get("KILL_IN_WRITE", "*:0:before").split(":")


def dying(rename: Callable[..., None]) -> Callable[..., None]:
    """Return `rename` with the death of this process before or after it."""
    met = 0

    def renamed(source: Any, target: Any, **more: Any) -> None:
        nonlocal met
        met += fnmatch.fnmatch(PurePath(os.fsdecode(target)).name, PATTERN)
        last = met == int(COUNT) > 0
        if last and MOMENT == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target, **more)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    return renamed


os.replace = dying(os.replace)
