"""Six kills of the real `train`, some within a write, and the same bytes in the end."""

import json
import subprocess
import sys
from pathlib import Path

from .conftest import REPOSITORY

MINUTES = 60


def test_a_run_killed_six_times_ends_in_the_same_bytes(tmp_path: Path) -> None:
    figures = tmp_path / "chaos.json"
    command = [
        sys.executable,
        str(REPOSITORY / "bench" / "chaos.py"),
        "--kills",
        "6",
        "--seed",
        "8",
    ]
    done = subprocess.run(
        [*command, "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=40 * MINUTES,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    assert told["kills"] == 6
    assert told["identical"] is True
    assert told["resumes"] > 0
    assert told["killed_in_write"] > 0
