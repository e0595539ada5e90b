"""Check training and serving on the machine at hand, meant for a GPU that is lent for minutes.

    python bench/gpu.py [--data DIR] [--json FILE] [--tiny]

The parts run in this order: the device, the whole default training, the seed's recipe with its 100
epochs, each arithmetic, determinism (a resumed run too), running out of memory, the engine against
its limit, peers, a profile of ten steps, 224 x 224, a million slices, the server, ONNX, and the
audit of 100,000 slices. Each result is printed and written to FILE at once, so a run that is cut
short keeps what it measured. A part that fails is recorded with one sentence and the next part
runs; the exit code is then 1. Without --data synthetic slices are drawn. `--tiny` checks this
program on two CPU cores within minutes.

Needs no network. The parts that train need torch, numpy, Pillow, pydantic, safetensors, scipy,
scikit-learn, matplotlib, jinja2, click and rich; the server flask, gunicorn and prometheus-client;
ONNX onnx, onnxruntime and onnxscript. albumentations, torchvision, timm, wandb, boto3 and the
program wrk may be missing. Set PYTHONPATH=code where alexmri is not installed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gpu_check import Check, Figures
from gpu_model import onnx_parity, server
from gpu_profile import profile
from gpu_training import (
    at_224_pixels,
    audit,
    determinism,
    million,
    out_of_memory,
    peers,
    precisions,
    seeds_recipe,
    step_against_limit,
    training,
)

from alexmri.files import write_json

PREFLIGHT = Path(__file__).parents[1] / "container" / "preflight"


def device(check: Check) -> Figures:
    """Describe the device, and repeat what container/preflight says about it."""
    import torch

    from alexmri.contract.gpu_facts import kernel_driver

    facts: Figures = {"torch": torch.__version__, "device": "cpu"}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        facts |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": card.total_memory / 2**30,
        }
    facts |= {"cuda": torch.version.cuda, "driver": kernel_driver()}
    done = subprocess.run([sys.executable, PREFLIGHT], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    facts["preflight"] = {"exit_code": done.returncode, "lines": lines}
    if done.returncode:
        facts["failed"] = f"preflight ended with exit code {done.returncode}: {lines[-1:]}"
    return facts


PARTS: tuple[Callable[[Check], Figures], ...] = (
    device,
    training,
    seeds_recipe,
    precisions,
    determinism,
    out_of_memory,
    step_against_limit,
    peers,
    profile,
    at_224_pixels,
    million,
    server,
    onnx_parity,
    audit,
)


def attempt(part: Callable[[Check], Figures], check: Check) -> Figures:
    """Return the figures of a part, or why there are none."""
    try:
        return part(check)
    except ModuleNotFoundError as error:
        return {"failed": f"the package {error.name} is missing"}
    except Exception as error:
        return {"failed": " ".join(str(error).split()) or type(error).__name__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of class folders")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--tiny", action="store_true", help="minutes on a CPU: a few slices")
    options = parser.parse_args()
    document: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="alexmri-gpu-") as folder:
        os.environ["ALEXMRI_CACHE_DIR"] = str(Path(folder) / "cache")
        check = Check(options.data, Path(folder), options.tiny)
        for part in PARTS:
            began = time.perf_counter()
            document[part.__name__] = attempt(part, check)
            document[part.__name__]["part_seconds"] = time.perf_counter() - began
            print(json.dumps({part.__name__: document[part.__name__]}, indent=2), flush=True)
            if options.json:
                write_json(options.json, document)
    failed = [name for name, figures in document.items() if "failed" in figures]
    print(f"failed: {', '.join(failed)}" if failed else f"all {len(PARTS)} parts ran", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
