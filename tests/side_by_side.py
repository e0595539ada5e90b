"""Run one piece of Python in several workers that are joined, and return what each came to.

The processes are forked from one that has imported all there is, which takes longer than they do.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alexmri.contract.workers import meeting_on_one_host, places

PATIENCE = 240
PROGRAM = """
import json, os, sys
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from alexmri.contract.signals import StopRequest
from alexmri.training.distributed import joined

folder, environments = sys.argv[1], json.loads(sys.argv[2])
pids = []
for number, variables in enumerate(environments):
    pid = os.fork()
    if pid == 0:
        os.environ |= variables
        torch.set_num_threads(1)
        code = 1
        try:
            with joined(os.environ, StopRequest()) as workers:
                results = {}
                exec(sys.argv[3], globals() | {"workers": workers, "results": results})
                torch.save(results, f"{folder}/{number}.pt")
            code = 0
        finally:
            if code:
                import traceback
                traceback.print_exc()
            os._exit(code)
    pids.append(pid)
# A signal that killed one is a negative code.
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
sys.exit(f"workers ended with {codes}" if any(codes) else 0)
"""


def side_by_side(folder: Path, sizes: Sequence[int], body: str) -> list[list[dict[str, Any]]]:
    """Run `body` in teams of these sizes; return for each team what its workers put in `results`.

    `body` sees `workers`, and torch, numpy and the like as they are imported above.
    """
    environments = [place for size in sizes for place in places([size], meeting_on_one_host())]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, json.dumps(environments), body],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [torch.load(folder / f"{i}.pt", weights_only=False) for i in range(sum(sizes))]
    return [[results.pop(0) for _ in range(size)] for size in sizes]
