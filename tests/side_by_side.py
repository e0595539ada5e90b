"""Run one piece of Python in several workers that are joined, and return what each came to.

The processes are forked from one that has imported all there is, which takes longer than they do.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from alexmri.contract.network import free_port

PATIENCE = 240
PROGRAM = """
import os, sys, traceback
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from alexmri.contract.signals import StopRequest
from alexmri.training.distributed import joined

folder, size, body = sys.argv[1], int(sys.argv[2]), sys.argv[3]
pids = []
for rank in range(size):
    pid = os.fork()
    if pid == 0:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= own | {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        torch.set_num_threads(1)
        code = 1
        try:
            with joined(os.environ) as workers:
                results = {}
                exec(body, globals() | {"workers": workers, "results": results})
                torch.save(results, f"{folder}/{rank}.pt")
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    pids.append(pid)
# A signal that killed one is a negative code.
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
sys.exit(f"workers ended with {codes}" if any(codes) else 0)
"""


def side_by_side(folder: Path, size: int, body: str) -> list[dict[str, Any]]:
    """Run `body` in so many workers; return what each put in `results`.

    `body` sees `workers`, and torch, numpy and the like as they are imported above.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, str(size), body],
        env={**os.environ, **meeting, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
