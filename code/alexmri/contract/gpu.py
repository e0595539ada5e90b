"""Decide, before anything imports torch, how to start on this machine's GPU, or without one.

Every way in passes here: container/train and container/serve give the variables that
`gpu_environment` returns to the process that imports torch, commands call `use_gpu` themselves.
`preflight` prints what the decision stands on.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from alexmri.contract.gpu_facts import (
    COMPAT_FOLDER,
    PROC,
    Card,
    Driver,
    Gpu,
    Torch,
    Version,
    ask_driver,
    compat_driver,
    installed_torch,
    kernel_driver,
    version_of,
)
from alexmri.contract.paths import Paths
from alexmri.contract.resources import size_text
from alexmri.errors import UserError
from alexmri.files import read_json_object

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

    Raises:
        UserError: as `gpu_environment`.
    """
    startup = gpu_environment(os.environ, Paths.of(os.environ))
    adopt(startup.variables)
    for line in startup.lines:
        say(line)
    return startup


def adopt(variables: Mapping[str, str]) -> None:
    """Take over the environment that was chosen for torch.

    Libraries are found by the environment a process starts with. Where that must change, this
    process starts anew.
    """
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ.update(variables)
    if os.environ.get("LD_LIBRARY_PATH") != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


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
        before = [part for part in environment.get("LD_LIBRARY_PATH", "").split(":") if part]
        # A process that started anew for this has the folder there already.
        first = [] if before[:1] == [str(compat_folder)] else [str(compat_folder)]
        variables["LD_LIBRARY_PATH"] = ":".join(first + before)
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
        raise UserError(f"{required}, but {problem}; set {REQUIRE_SWITCH}=0 to use the CPU")
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


@dataclass(frozen=True, slots=True)
class Build:
    """What the Dockerfile's argument TORCH_CUDA decides: a major version of CUDA, the oldest
    driver branch that runs it, and the compute capabilities PyTorch has code for."""

    cuda: int
    driver: int
    capabilities: tuple[Version, ...]


# Capabilities: torch.cuda.PYTORCH_RELEASES_CODE_CC. Drivers: NVIDIA's guide "CUDA Compatibility",
# minor version compatibility.
BUILDS = {
    "cu130": Build(13, 580, ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0))),
    "cu126": Build(12, 525, ((5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0))),
}
OLDEST_DRIVER = {build.cuda: build.driver for build in BUILDS.values()}
# Driver branches of SageMaker's endpoints (API: ProductionVariant, InferenceAmiVersion).
INFERENCE_AMIS = {
    535: "al2-ami-sagemaker-inference-gpu-2-1",
    550: "al2-ami-sagemaker-inference-gpu-3-1",
    580: "al2023-ami-sagemaker-inference-gpu-4-1",
}
# The cards of SageMaker's instance families.
FAMILIES = {
    "ml.p3": (7, 0),
    "ml.g4dn": (7, 5),
    "ml.p4d": (8, 0),
    "ml.g5": (8, 6),
    "ml.g6": (8, 9),
    "ml.g6e": (8, 9),
    "ml.p5": (9, 0),
    "ml.p6-b200": (10, 0),
}
NO_DEVICE, DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED = 100, 803, 804  # <cuda.h>


def problem_of(gpu: Gpu, environment: Mapping[str, str]) -> str | None:
    """Return in one sentence why torch cannot use a GPU here and what helps; None where it can."""
    torch, driver = gpu.torch, gpu.driver
    if torch.cuda is None:
        return (
            f"PyTorch {torch.version} is built without CUDA; use an image built with"
            f" TORCH_CUDA={next(iter(BUILDS))}"
        )
    if driver.is_missing:
        return _no_library(gpu.kernel, environment)
    if is_too_old(gpu.plain, torch) and (driver.error or not gpu.compat_is_on):
        return _driver_too_old(gpu)
    if driver.error in (DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED):
        return (
            f"CUDA cannot start: {driver.message}; set ALEXMRI_CUDA_COMPAT=off and keep cuda-compat"
            " out of LD_LIBRARY_PATH"
        )
    if driver.error == NO_DEVICE or not (driver.error or driver.cards):
        return _no_card(environment)
    if driver.error:
        return f"CUDA cannot start: {driver.message}"
    if not any(_covers(torch.capabilities, card.capability) for card in driver.cards):
        return _no_code(driver.cards[0], torch)
    return None


def is_too_old(driver: Driver, torch: Torch) -> bool:
    """Whether the driver's CUDA is of an earlier major version; within one, all minors run."""
    return bool(driver.cuda and torch.cuda and driver.cuda[0] < torch.cuda[0])


def cards_text(cards: tuple[Card, ...]) -> str:
    """Return `2 x NVIDIA A10G (compute capability 8.6, 22.1 GiB)`."""
    counts = Counter(
        f"{card.name} (compute capability {dotted(card.capability)}, {size_text(card.memory)})"
        for card in cards
    )
    return ", ".join(f"{n} x {text}" if n > 1 else text for text, n in counts.items())


def dotted(version: Version) -> str:
    """Return (8, 6) as `8.6`."""
    return ".".join(str(number) for number in version)


def _no_library(kernel: str | None, environment: Mapping[str, str]) -> str:
    if kernel is None:
        return "there is no NVIDIA driver on this machine"
    visible = environment.get("NVIDIA_VISIBLE_DEVICES")
    if visible in ("void", "none"):
        return f"NVIDIA_VISIBLE_DEVICES is '{visible}', which hides the GPU; set it to all"
    return (
        f"the NVIDIA driver {kernel} runs on this machine, but its library libcuda.so.1 is not"
        " here; start the container with NVIDIA's container toolkit (docker run --gpus all)"
    )


def _driver_too_old(gpu: Gpu) -> str:
    torch, known = gpu.torch.cuda or (), gpu.plain.cuda or ()
    needed = OLDEST_DRIVER.get(torch[0])
    remedies = [
        f"on an endpoint set InferenceAmiVersion to {ami}"
        for branch, ami in INFERENCE_AMIS.items()
        if needed and branch >= needed
    ][:1]
    remedies += [
        f"use an image built with TORCH_CUDA={tag}"
        for tag, build in BUILDS.items()
        if build.cuda <= known[0]
    ]
    found = gpu.kernel or f"one for CUDA {dotted(known)}"
    tried = f" (cuda-compat {gpu.compat} does not help: {gpu.driver.message})"
    return (
        f"the NVIDIA driver is {found}, and PyTorch for CUDA {dotted(torch)} needs"
        f" {f'{needed} or newer' if needed else 'a newer one'}{tried if gpu.compat_is_on else ''};"
        f" {', '.join([*remedies, 'or update the driver'])}"
    )


def _no_card(environment: Mapping[str, str]) -> str:
    names = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    hints = [f"{name} is '{environment[name]}'" for name in names if name in environment]
    said = f" ({', '.join(hints)})" if hints else ""
    return f"CUDA finds no GPU for this process{said}; give it one (docker run --gpus all)"


def _no_code(card: Card, torch: Torch) -> str:
    others = [tag for tag, build in BUILDS.items() if _covers(build.capabilities, card.capability)]
    families = [name for name, card in FAMILIES.items() if _covers(torch.capabilities, card)]
    remedy = f"use an image built with TORCH_CUDA={others[0]}" if others else "use another card"
    return (
        f"the GPU is {cards_text((card,))}, and PyTorch {torch.version} has code for"
        f" {', '.join(dotted(capability) for capability in torch.capabilities)}; {remedy}"
        f" ({', '.join(families)} have cards that do)"
    )


def _covers(code: tuple[Version, ...], card: Version) -> bool:
    """Whether machine code for `code` runs on `card`: on the same major version, a later minor.

    Unknown code (an empty tuple) is taken to run.
    """
    return not code or any(card[0] == major and card[1] >= minor for major, minor in code)
