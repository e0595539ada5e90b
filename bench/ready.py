"""Measure how soon `container/serve` is ready, beside what `import torch` takes.

    python bench/ready.py --bundle DIR [--rounds 5]

Each round imports torch in a new interpreter and starts a server, one after the other. Ready is the
first `GET /ping` with 200. A round that does not count brings everything into the page cache.
"""

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from servers import REPOSITORY, free_port, ours

# What is promised: so many times the import, and so many seconds more.
ALLOWED_TIMES, ALLOWED_SECONDS = 1.5, 2.0
LOOK_SECONDS, PATIENCE_SECONDS = 0.01, 120.0


def import_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def ready_seconds(bundle: Path) -> float:
    """Return the seconds from the start of a server on `bundle` until /ping says it is ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").symlink_to(bundle.resolve())
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY / "code"),
            "SAGEMAKER_BASE_DIR": folder,
            "SAGEMAKER_BIND_TO_PORT": str(port),
        }
        began = time.perf_counter()
        with subprocess.Popen(ours({}), env=environment, stdout=subprocess.DEVNULL) as server:
            try:
                while not is_ready(port):
                    if server.poll() is not None or time.perf_counter() > began + PATIENCE_SECONDS:
                        raise RuntimeError("the server did not become ready")
                    time.sleep(LOOK_SECONDS)
                return time.perf_counter() - began
            finally:
                server.terminate()


def is_ready(port: int) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as asked:
        try:
            asked.request("GET", "/ping")
            return asked.getresponse().status == 200
        except OSError:
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a model directory")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    imports, starts = [], []
    for _ in range(1 + options.rounds):
        imports.append(import_seconds())
        starts.append(ready_seconds(options.bundle))
    imported, ready = (statistics.median(each[1:]) for each in (imports, starts))
    allowed = ALLOWED_TIMES * imported + ALLOWED_SECONDS
    print(json.dumps({"import_torch_s": imported, "ready_s": ready, "allowed_s": allowed}))


if __name__ == "__main__":
    main()
