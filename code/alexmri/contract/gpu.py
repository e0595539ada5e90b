"""Decide, before anything imports torch, how to start on this machine's GPU, or without one.

Every way in passes here: container/train and container/serve give the variables that
`gpu_environment` returns to the process that imports torch, commands call `use_gpu` themselves.
`preflight` prints what the decision stands on.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.gpu_facts import (
    COMPAT_FOLDER,
    PROC,
    Driver,
    Gpu,
    Torch,
    ask_driver,
    compat_driver,
    installed_torch,
    kernel_driver,
    version_of,
)
from alexmri.contract.gpu_problems import cards_text, is_too_old, problem_of
from alexmri.contract.json_files import read_json_object
from alexmri.contract.paths import Paths
from alexmri.errors import UserError

COMPAT_SWITCH = "ALEXMRI_CUDA_COMPAT"
REQUIRE_SWITCH = "ALEXMRI_REQUIRE_GPU"
GPU_INSTANCE = re.compile(r"ml\.(g|gr|p)\d")


@dataclass(frozen=True, slots=True)
class Startup:
    """What to print, what to set for the process that imports torch, and how many GPUs it has."""

    lines: tuple[str, ...]
    variables: dict[str, str]
    gpus: int = 0


def gpu_environment(environment: Mapping[str, str], paths: Paths) -> Startup:
    """Return what a process needs in order to use this machine's GPU, or to do without.

    Raises:
        UserError: a GPU is required and cannot be used, or a switch has a wrong value.
    """
    return decide(examine(environment), environment, paths)


def use_gpu(say: Callable[[str], None]) -> Startup:
    """Make this process, which has not imported torch, one that uses the GPU or does without.

    Libraries are found by the environment a process starts with. Where that must change, this
    process starts anew.

    Raises:
        UserError: as `gpu_environment`.
    """
    startup = gpu_environment(os.environ, Paths.of(os.environ))
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ.update(startup.variables)
    if os.environ.get("LD_LIBRARY_PATH") != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    for line in startup.lines:
        say(line)
    return startup


def examine(
    environment: Mapping[str, str],
    *,
    proc: Path = PROC,
    compat_folder: Path = COMPAT_FOLDER,
    ask: Callable[[Mapping[str, str]], Driver] = ask_driver,
    torch: Torch | None = None,
) -> Gpu:
    """Find PyTorch, driver and cards, with NVIDIA's cuda-compat libraries where they are needed.

    Raises:
        UserError: ALEXMRI_CUDA_COMPAT has a wrong value, or is on where no such libraries are.
    """
    switch = _choice(environment, COMPAT_SWITCH, ("auto", "on", "off"))
    torch = torch or installed_torch()
    kernel, compat = kernel_driver(proc), compat_driver(compat_folder)
    if switch == "on" and compat is None:
        raise UserError(f"{COMPAT_SWITCH} is on, but there is no {compat_folder}/libcuda.so.1")
    plain = driver = ask(environment)
    variables: dict[str, str] = {}
    if switch == "on" or (switch == "auto" and compat_helps(torch, kernel, plain, compat)):
        before = environment.get("LD_LIBRARY_PATH")
        variables["LD_LIBRARY_PATH"] = f"{compat_folder}:{before}" if before else str(compat_folder)
        driver = ask({**environment, **variables})
    return Gpu(torch, kernel, compat, plain, driver, variables)


def compat_helps(torch: Torch, kernel: str | None, plain: Driver, compat: str | None) -> bool:
    """Whether the driver is too old for this PyTorch, and the cuda-compat libraries are newer.

    They work on data-centre cards only, so a driver that suffices is left alone; and they fail
    beside a driver newer than themselves (CUDA error 803).
    """
    newer = compat is not None and (kernel is None or version_of(kernel) < version_of(compat))
    return newer and is_too_old(plain, torch)


def decide(gpu: Gpu, environment: Mapping[str, str], paths: Paths) -> Startup:
    """Return how to start with what was found; where no GPU can be used, on the CPU.

    Raises:
        UserError: a GPU is required and cannot be used.
    """
    required = required_by(environment, paths)
    problem = problem_of(gpu, environment)
    if problem and required:
        raise UserError(f"{required}, but {problem}; {REQUIRE_SWITCH}=0 computes on the CPU")
    if problem and gpu.kernel is None and gpu.driver.is_missing:
        return Startup(("GPU: none, the CPU computes",), {})
    if problem:
        # A card that torch sees but has no code for would end the job at its first step.
        hide = {"CUDA_VISIBLE_DEVICES": ""}
        return Startup((f"warning: the GPU is not used, the CPU computes: {problem}",), hide)
    lines = [f"GPU: {cards_text(gpu.driver.cards)}, driver {gpu.kernel or 'unknown'}"]
    if gpu.compat_is_on:
        path = gpu.variables["LD_LIBRARY_PATH"]
        lines.append(f"cuda-compat {gpu.compat} is switched on: LD_LIBRARY_PATH={path}")
    return Startup(tuple(lines), dict(gpu.variables), len(gpu.driver.cards))


def required_by(environment: Mapping[str, str], paths: Paths) -> str | None:
    """Return why a GPU is required, or None: a job on a GPU instance is not for the CPU.

    Raises:
        UserError: ALEXMRI_REQUIRE_GPU has a wrong value.
    """
    switch = _choice(environment, REQUIRE_SWITCH, ("auto", "1", "0"))
    if switch == "1":
        return f"{REQUIRE_SWITCH} is 1"
    instance = _instance_type(paths)
    if switch == "auto" and GPU_INSTANCE.match(instance):
        return f"{instance} is a GPU instance"
    return None


def _instance_type(paths: Paths) -> str:
    """Return what resourceconfig.json says; complaints about that file are for its reader."""
    try:
        return str((read_json_object(paths.resource_config) or {}).get("current_instance_type"))
    except UserError:
        return ""


def _choice(environment: Mapping[str, str], name: str, values: tuple[str, ...]) -> str:
    value = environment.get(name) or values[0]
    if value not in values:
        raise UserError(f"{name} is '{value}'; it takes {', '.join(values[:-1])} or {values[-1]}")
    return value
