"""What this machine and the installed PyTorch say about GPUs, found without importing torch."""

import importlib.util
import json
import mmap
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
COMPAT_FOLDER = Path("/usr/local/cuda/compat")
PROBE = Path(__file__).with_name("cuda_probe.py")
# Seconds; a machine may take some to wake eight cards.
PATIENCE = 60

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Torch:
    """The installed PyTorch: the CUDA it is built for, and the cards it holds machine code for."""

    version: str
    cuda: Version | None
    capabilities: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as CUDA describes it: compute capability such as (8, 6), memory in bytes."""

    name: str
    capability: Version
    memory: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The answer of the driver's library libcuda.so.1.

    Attributes:
        cuda: the newest CUDA it can run; None where there is no such library.
        error: CUDA's number for why it cannot start; 0 where it can.
        message: the error in words.
        cards: the GPUs this process may use.
    """

    cuda: Version | None = None
    error: int = 0
    message: str = ""
    cards: tuple[Card, ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether there is no libcuda.so.1."""
        return self.cuda is None and not self.error


@dataclass(frozen=True, slots=True)
class Gpu:
    """What was found.

    Attributes:
        kernel: version of the running NVIDIA kernel module; None where none is to be seen.
        compat: version of the cuda-compat library; None where there is none.
        plain: what libcuda says in the environment as it is.
        driver: what libcuda says in the environment chosen for torch.
        variables: the change that makes that environment: cuda-compat, or nothing.
    """

    torch: Torch
    kernel: str | None
    compat: str | None
    plain: Driver
    driver: Driver
    variables: Mapping[str, str]

    @property
    def compat_is_on(self) -> bool:
        return bool(self.variables)


def kernel_driver(proc: Path = PROC) -> str | None:
    """Return the version of the NVIDIA kernel module that runs, such as 535.183.01, or None."""
    try:
        text = (proc / "driver" / "nvidia" / "version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None


def compat_driver(folder: Path = COMPAT_FOLDER) -> str | None:
    """Return the version of the driver library that NVIDIA's base images bring along, or None.

    There, libcuda.so.1 is a link to a file whose name ends in the version.
    """
    library = (folder / "libcuda.so.1").resolve()
    return library.name.removeprefix("libcuda.so.") if library.is_file() else None


def installed_torch() -> Torch:
    """Read from PyTorch's files what it says of itself after an import that takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return Torch("not installed", None, ())
    folder = Path(spec.origin).parent
    facts = runpy.run_path(str(folder / "version.py"))
    return Torch(
        facts["__version__"],
        version_of(facts["cuda"]) if facts["cuda"] else None,
        _compiled_for(folder / "lib" / "libtorch_python.so"),
    )


def ask_driver(environment: Mapping[str, str]) -> Driver:
    """Return what libcuda says to a process that has this environment."""
    command = [sys.executable, "-I", "-S", str(PROBE)]
    try:
        answer = subprocess.run(  # noqa: S603
            command, env=dict(environment), capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return Driver(error=-1, message=f"no answer within {PATIENCE} s")
    if answer.returncode:
        last = answer.stderr.strip().rpartition("\n")[2]
        return Driver(error=-1, message=f"libcuda ended its process ({answer.returncode}) {last}")
    found = json.loads(answer.stdout)
    cards = [Card(c["name"], tuple(c["capability"]), c["memory"]) for c in found["cards"]]
    cuda = tuple(found["cuda"]) if found["cuda"] else None
    return Driver(cuda, found["error"], found["message"], tuple(cards))


def version_of(text: str) -> Version:
    """Return `535.183.01` as numbers that compare."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _compiled_for(library: Path) -> tuple[Version, ...]:
    """Return the compute capabilities torch.cuda.get_arch_list() names.

    The library holds that list as one text, `sm_75 sm_80 …`.
    """
    if not library.is_file():
        return ()
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        start = content.find(b"\0sm_")
        text = content[start : start + 500] if start >= 0 else b""
    codes = re.findall(rb"sm_(\d+)(?= |$)", text[1:].partition(b"\0")[0])
    return tuple(divmod(int(code), 10) for code in codes)
