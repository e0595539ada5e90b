"""Say which code, which libraries and which machine made a model."""

import hashlib
import os
import platform
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import alexmri
from alexmri.contract.resources import installed_version

LIBRARIES = ("torch", "numpy", "pillow", "albumentations", "safetensors")


def code_document() -> dict[str, str]:
    """Return version and SHA-256 of the package's Python files: equal code, equal document."""
    root = Path(alexmri.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return {"version": version(), "fingerprint": digest.hexdigest()}


def version() -> str:
    """Return the version of the installed package, or `unknown` where it runs from a folder."""
    return installed_version("alexmri")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide numbers."""
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in LIBRARIES},
    }


def machine_document(compute_device: torch.device, precision: str) -> dict[str, Any]:
    """Return time, host and hardware: whatever may differ between two equal runs."""
    on_gpu = compute_device.type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if on_gpu else _cpu_name(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": library_versions(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
