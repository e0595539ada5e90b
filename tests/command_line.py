"""The command `alexmri` as a process of its own, for tests."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from alexmri.cli import main; main()"]
TINY = ("--epochs", "2", "--batch-size", "16", "--wandb-mode", "disabled")


def run(
    *arguments: object, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def train(
    data: Path, out: Path, *more: object, **options: object
) -> subprocess.CompletedProcess[str]:
    return run("train", "--data", data, "--out", out, *TINY, *more, **options)
