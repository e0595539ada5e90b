"""What the docker tests do again and again: run commands, lay out jobs, ask over HTTP."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alexmri.data.phantom import write_demo_data

REPOSITORY = Path(__file__).parents[2]
REAL_SLICES = REPOSITORY.parent / "shared" / "data" / "alzheimer-mri"
# Seconds; the first build downloads gigabytes.
PATIENCE = 1500

Result = subprocess.CompletedProcess[str]
Docker = Callable[..., Result]


def call(*command: str, check: bool = True, **more: Any) -> Result:
    """Run a command; when it fails, the test fails with all it printed."""
    result: Result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, **more
    )
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{result.stdout}\n{result.stderr}")
    return result


def alexmri(*arguments: str) -> Result:
    """Run the command line outside any container."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "code")}
    script = "from alexmri.cli import main; main()"
    return call(sys.executable, "-c", script, *arguments, env=environment)


def write_slices(folder: Path) -> Path:
    """Fill `folder` with a few real slices where a developer has them, else with made-up ones."""
    if not REAL_SLICES.is_dir():
        write_demo_data(folder, subjects={"MildDemented": 5, "NonDemented": 5}, slices=8)
        return folder
    for label in ("MildDemented", "NonDemented"):
        (folder / label).mkdir(parents=True)
        for person in range(1, 6):
            for path in sorted((REAL_SLICES / label).glob(f"* ({person}).jpg"))[:8]:
                shutil.copyfile(path, folder / label / path.name)
    return folder


def write_hyperparameters(root: Path, **values: str) -> None:
    path = root / "input" / "config" / "hyperparameters.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def copy_of_repository(folder: Path) -> Path:
    """Copy what git knows or would add, as a fresh clone has it."""
    files = call("git", "ls-files", "-co", "--exclude-standard", cwd=REPOSITORY).stdout.splitlines()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    return folder


def ask(port: int, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Ask once, a JPEG where there is a body; return status and JSON, or 0 where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        return 0, None
    finally:
        connection.close()
    return answer.status, json.loads(content) if content else None


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `condition` holds; the test fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)
