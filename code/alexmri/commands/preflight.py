"""Print what a container has to work with: what container/preflight runs."""

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from alexmri.contract.failure import USER_ERROR_CODE, log_failure
from alexmri.contract.gpu import cards_text, decide, dotted, examine, problem_of
from alexmri.contract.gpu_facts import Gpu
from alexmri.contract.paths import Paths
from alexmri.contract.resources import (
    cpu_cores,
    free_disk_bytes,
    free_memory_bytes,
    free_shared_memory_bytes,
    installed_version,
    memory_bytes,
    shared_memory_bytes,
    size_text,
    usable_memory_bytes,
)
from alexmri.errors import UserError
from alexmri.terminal import prepare_output


def main(doc: str | None) -> int:
    """Print the facts; return the exit code. `doc` is printed where arguments are given."""
    prepare_output()
    if sys.argv[1:]:
        print(doc)
        return 0 if {"-h", "--help"} & set(sys.argv) else 2
    paths = Paths.of(os.environ)
    _show(_machine_facts())
    _show(_folder_facts(paths))
    try:
        gpu = examine(os.environ)
        _show(_gpu_facts(gpu))
        _require_readable(paths)
        startup = decide(gpu, os.environ, paths)
    except UserError as error:
        log_failure(error)
        return USER_ERROR_CODE
    print(*startup.lines, sep="\n")
    return 0


def _show(facts: Iterator[tuple[str, object]]) -> None:
    for name, value in facts:
        print(f"{name}: {value}", flush=True)


def _machine_facts() -> Iterator[tuple[str, object]]:
    yield "alexmri", installed_version("alexmri")
    yield "python", platform.python_version()
    yield "CPU", platform.machine()
    yield "cores of the machine", os.cpu_count()
    yield "cores usable here", cpu_cores()
    yield "memory of the machine", size_text(memory_bytes())
    yield "memory usable here", size_text(usable_memory_bytes())
    yield "memory free", size_text(free_memory_bytes())
    yield "shared memory", size_text(shared_memory_bytes())
    yield "shared memory free", size_text(free_shared_memory_bytes())
    yield "user", os.getuid()


def _folder_facts(paths: Paths) -> Iterator[tuple[str, object]]:
    channels = _channels_of(paths)
    for channel in channels:
        yield f"channel {channel.name}", _contents(channel)
    if not channels:
        yield "channels", f"none in {paths.data}"
    for folder in (paths.model, paths.output, paths.root / "checkpoints", Path("/tmp")):  # noqa: S108
        yield str(folder), _condition(folder)


def _channels_of(paths: Paths) -> list[Path]:
    return sorted(paths.data.iterdir()) if paths.data.is_dir() and _readable(paths.data) else []


def _require_readable(paths: Paths) -> None:
    """Refuse what a training could not read either, once all facts are told."""
    for folder in (paths.data, *_channels_of(paths)):
        if folder.is_dir() and not _readable(folder):
            raise UserError(
                f"{folder} cannot be read by user {os.getuid()}; make it readable for this user,"
                " or run the container as its owner"
            )


def _contents(channel: Path) -> str:
    if not channel.is_dir():
        return "no folder"
    readable = _readable(channel)
    return f"{len(list(channel.iterdir()))} entries" if readable else "not readable by this user"


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _condition(folder: Path) -> str:
    if not folder.is_dir():
        return "not there"
    access = "writable" if os.access(folder, os.W_OK) else "not writable by this user"
    return f"{access}, {size_text(free_disk_bytes(folder))} free"


def _gpu_facts(gpu: Gpu) -> Iterator[tuple[str, object]]:
    yield "NVIDIA driver", gpu.kernel or "none"
    yield "CUDA of the driver", dotted(gpu.plain.cuda) if gpu.plain.cuda else "none"
    yield "torch", gpu.torch.version
    yield "torch built for CUDA", dotted(gpu.torch.cuda) if gpu.torch.cuda else "none"
    yield "torch built for cards", ", ".join(dotted(code) for code in gpu.torch.capabilities)
    yield "cards", cards_text(gpu.driver.cards) or "none"
    compat = f"{gpu.compat}, {'on' if gpu.compat_is_on else 'off'}" if gpu.compat else "none here"
    yield "cuda-compat", compat
    yield "device", "cpu" if problem_of(gpu, os.environ) else "cuda"
