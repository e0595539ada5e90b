"""A stand-in for NVIDIA's driver library, compiled on the spot: no machine of ours has a GPU."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = """
#include <string.h>
int cuDriverGetVersion(int *version) { *version = CUDA; return 0; }
int cuInit(unsigned flags) { return ERROR; }
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_OF_TEST"; return 0; }
int cuDeviceGetCount(int *count) { *count = CARDS; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, NAME, size); return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 16ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{ *value = attribute == 75 ? CAPABILITY / 10 : CAPABILITY % 10; return 0; }
"""


@dataclass(frozen=True)
class FakeCuda:
    """A libcuda.so.1: the CUDA it knows (12040 is 12.4), its error, the cards it shows."""

    cuda: int
    error: int | str = 0  # or an expression in C
    cards: int = 1
    name: str = "Tesla T4"
    capability: int = 75

    def install(self, folder: Path, version: str) -> Path:
        """Put the library below `folder` under the name NVIDIA gives to that version."""
        compiler = shutil.which("cc")
        if compiler is None:
            reason = "no C compiler (cc) to make a libcuda.so.1 with"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / f"libcuda.so.{version}"
        values = {"CUDA": self.cuda, "ERROR": self.error, "CARDS": self.cards}
        values |= {"NAME": f'"{self.name}"', "CAPABILITY": self.capability}
        options = [f"-D{name}={value}" for name, value in values.items()]
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library, *options],
            input=SOURCE,
            text=True,
            check=True,
        )
        (folder / "libcuda.so.1").symlink_to(library.name)
        return folder
