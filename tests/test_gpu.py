"""What is decided about the GPU before torch is imported, on machines made up in a folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import botocore.session
import pytest
import torch

from alexmri.contract.gpu import BUILDS, FAMILIES, INFERENCE_AMIS, Startup, decide, examine
from alexmri.contract.gpu_facts import Torch, installed_torch, kernel_driver
from alexmri.contract.paths import Paths
from alexmri.errors import UserError

from .fake_cuda import FakeCuda

CU130 = Torch("2.14.1+cu130", (13, 0), BUILDS["cu130"].capabilities)
CU126 = Torch("2.14.1+cu126", (12, 6), BUILDS["cu126"].capabilities)
PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (root@host)
GCC version:  gcc version 13.2.0
"""


@dataclass
class Machine:
    """A machine below `root`: its kernel module, its libcuda, the image's cuda-compat."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"]})

    def driver(self, version: str, library: FakeCuda | None, text: str = PROPRIETARY) -> "Machine":
        path = self.root / "proc" / "driver" / "nvidia" / "version"
        path.parent.mkdir(parents=True)
        path.write_text(text.format(version), encoding="utf-8")
        if library:
            self.environment["LD_LIBRARY_PATH"] = str(library.install(self.root / "lib", version))
        return self

    def compat(self, version: str, library: FakeCuda) -> "Machine":
        library.install(self.compat_folder, version)
        return self

    @property
    def compat_folder(self) -> Path:
        return self.root / "usr" / "local" / "cuda" / "compat"

    def instance(self, name: object) -> "Machine":
        path = self.root / "ml" / "input" / "config" / "resourceconfig.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"current_instance_type": name}), encoding="utf-8")
        return self

    def start(self, build: Torch = CU130, **variables: str) -> Startup:
        environment = {**self.environment, **variables}
        gpu = examine(
            environment, proc=self.root / "proc", compat_folder=self.compat_folder, torch=build
        )
        return decide(gpu, environment, Paths(self.root / "ml"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_driver_that_suffices_is_used_as_it_is(machine: Machine) -> None:
    # cuda-compat is newer by a digit, and still off: it is only for data-centre cards.
    started = (
        machine.driver("580.65.06", FakeCuda(13000, cards=4))
        .compat("580.95.05", FakeCuda(13000, error=804))
        .instance("ml.g4dn.12xlarge")
        .start()
    )
    assert started.lines == (
        "GPU: 4 x Tesla T4 (compute capability 7.5, 16.0 GiB), driver 580.65.06",
    )
    assert started.variables == {}


def test_cuda_compat_is_switched_on_for_a_driver_that_is_too_old(machine: Machine) -> None:
    machine.driver("535.183.01", FakeCuda(12020)).compat("580.65.06", FakeCuda(13000))
    started = machine.start()
    path = f"{machine.compat_folder}:{machine.environment['LD_LIBRARY_PATH']}"
    assert started.variables == {"LD_LIBRARY_PATH": path}
    assert started.lines[1] == f"cuda-compat 580.65.06 is switched on: LD_LIBRARY_PATH={path}"


def test_cuda_compat_stays_off_for_a_build_the_driver_can_run(machine: Machine) -> None:
    machine.driver("535.183.01", FakeCuda(12020)).compat("580.65.06", FakeCuda(13000, error=804))
    assert machine.start(CU126).variables == {}


def test_cuda_compat_older_than_the_driver_is_never_switched_on_by_itself(machine: Machine) -> None:
    # The driver is newer than the libraries, yet too old for this PyTorch.
    machine.driver("560.35.03", FakeCuda(12060)).compat("550.54.15", FakeCuda(13000, error=803))
    (line,) = machine.start().lines
    assert "the NVIDIA driver is 560.35.03" in line
    assert "cuda-compat" not in line


def test_the_switch_for_cuda_compat_takes_auto_on_and_off(machine: Machine) -> None:
    machine.driver("535.183.01", FakeCuda(12020)).compat("580.65.06", FakeCuda(13000))
    assert "LD_LIBRARY_PATH" in machine.start(ALEXMRI_CUDA_COMPAT="auto").variables
    assert "LD_LIBRARY_PATH" in machine.start(ALEXMRI_CUDA_COMPAT="on").variables
    assert "LD_LIBRARY_PATH" not in machine.start(ALEXMRI_CUDA_COMPAT="off").variables
    with pytest.raises(UserError, match="ALEXMRI_CUDA_COMPAT is 'yes'; it takes auto, on or off"):
        machine.start(ALEXMRI_CUDA_COMPAT="yes")


def test_cuda_compat_cannot_be_switched_on_where_there_is_none(machine: Machine) -> None:
    machine.driver("535.183.01", FakeCuda(12020))
    with pytest.raises(UserError, match="is on, but there is no .*/compat/libcuda.so.1"):
        machine.start(ALEXMRI_CUDA_COMPAT="on")


def test_cuda_compat_forced_beside_a_newer_driver_is_named_as_the_cause(machine: Machine) -> None:
    machine.driver("590.44.01", FakeCuda(13010)).compat("580.65.06", FakeCuda(13000, error=803))
    (line,) = machine.start(ALEXMRI_CUDA_COMPAT="on").lines
    assert "CUDA_ERROR_OF_TEST (803); set ALEXMRI_CUDA_COMPAT=off" in line


def test_a_driver_too_old_is_told_with_what_is_needed_and_what_helps(machine: Machine) -> None:
    machine.driver("535.183.01", FakeCuda(12020)).instance("ml.g5.xlarge")
    with pytest.raises(UserError) as caught:
        machine.start()
    assert str(caught.value) == (
        "ml.g5.xlarge is a GPU instance, but the NVIDIA driver is 535.183.01, and PyTorch for CUDA"
        " 13.0 needs 580 or newer; on an endpoint set InferenceAmiVersion to"
        " al2023-ami-sagemaker-inference-gpu-4-1, use an image built with TORCH_CUDA=cu126, or"
        " update the driver; set ALEXMRI_REQUIRE_GPU=0 to use the CPU"
    )


def test_a_driver_too_old_for_both_builds_is_not_sent_to_the_other_one(machine: Machine) -> None:
    (line,) = machine.driver("470.256.02", FakeCuda(11040)).start(CU126).lines
    assert line.endswith(
        "needs 525 or newer; on an endpoint set InferenceAmiVersion to"
        " al2-ami-sagemaker-inference-gpu-2-1, or update the driver"
    )


def test_cuda_compat_that_does_not_help_is_told_too(machine: Machine) -> None:
    machine.driver("550.163.01", FakeCuda(12040, name="GeForce RTX 3060", capability=86))
    (line,) = machine.compat("580.65.06", FakeCuda(13000, error=804)).start().lines
    assert "needs 580 or newer (cuda-compat 580.65.06 does not help: CUDA_ERROR_OF_TEST" in line


def test_without_a_kernel_module_to_be_seen_the_library_tells_the_version(
    machine: Machine,
) -> None:
    library = FakeCuda(12040).install(machine.root / "lib", "550.163.01")
    machine.environment["LD_LIBRARY_PATH"] = str(library)
    (line,) = machine.start().lines
    assert "the NVIDIA driver is one for CUDA 12.4, and PyTorch for CUDA 13.0 needs 580" in line
    assert machine.compat("580.65.06", FakeCuda(13000)).start().variables


@pytest.mark.parametrize(
    ("build", "capability", "words"),
    [
        (CU130, 70, "use an image built with TORCH_CUDA=cu126 (ml.g4dn, ml.p4d, ml.g5, ml.g6,"),
        (CU126, 100, "use an image built with TORCH_CUDA=cu130 (ml.p3, ml.g4dn,"),
        (CU130, 37, "use another card (ml.g4dn"),
    ],
)
def test_a_card_without_code_for_it_is_told_with_the_families_that_work(
    machine: Machine, build: Torch, capability: int, words: str
) -> None:
    card = FakeCuda(13000, name="Tesla V100", capability=capability)
    started = machine.driver("580.65.06", card).start(build)
    assert words in started.lines[0]
    # Else torch would choose the card and end at the first step.
    assert started.variables == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 103, 120])
def test_code_runs_on_later_minors_of_the_same_major(machine: Machine, capability: int) -> None:
    started = machine.driver("580.65.06", FakeCuda(13000, capability=capability)).start()
    assert started.lines[0].startswith("GPU: Tesla T4")


def test_a_gpu_instance_without_a_driver_fails(machine: Machine) -> None:
    machine.instance("ml.p4d.24xlarge")
    with pytest.raises(UserError, match="but there is no NVIDIA driver on this machine"):
        machine.start()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "but its library libcuda.so.1 is not here; start the container with NVIDIA's"),
        ({"NVIDIA_VISIBLE_DEVICES": "void"}, "NVIDIA_VISIBLE_DEVICES is 'void', which hides"),
    ],
)
def test_a_driver_whose_library_is_not_in_the_container(
    machine: Machine, variables: dict[str, str], words: str
) -> None:
    machine.driver("550.163.01", None).instance("ml.g6.xlarge")
    with pytest.raises(UserError) as caught:
        machine.start(**variables)
    assert words in str(caught.value)


@pytest.mark.parametrize("library", [FakeCuda(13000, error=100), FakeCuda(13000, cards=0)])
def test_a_driver_that_shows_no_card(machine: Machine, library: FakeCuda) -> None:
    started = machine.driver("580.65.06", library).start(CUDA_VISIBLE_DEVICES="")
    assert "CUDA finds no GPU for this process (CUDA_VISIBLE_DEVICES is '')" in started.lines[0]


def test_any_other_error_of_cuda_is_passed_on(machine: Machine) -> None:
    started = machine.driver("580.65.06", FakeCuda(13000, error=802)).start()
    assert started.lines[0].endswith("CUDA cannot start: CUDA_ERROR_OF_TEST (802)")


def test_a_library_that_crashes_does_not_take_us_along(machine: Machine) -> None:
    (line,) = machine.driver("580.65.06", FakeCuda(13000, error="*(int *)0")).start().lines
    assert "libcuda ended its process (-11)" in line


def test_pytorch_without_cuda_is_told(machine: Machine) -> None:
    machine.driver("580.65.06", FakeCuda(13000))
    (line,) = machine.start(Torch("2.14.1+cpu", None, ())).lines
    assert "PyTorch 2.14.1+cpu is built without CUDA" in line


@pytest.mark.parametrize(
    ("instance", "switch", "fails"),
    [
        ("ml.g5.xlarge", "auto", True),
        ("ml.gr6.4xlarge", "", True),
        ("ml.p5.48xlarge", "0", False),
        ("ml.c5.xlarge", "auto", False),
        ("ml.m5.large", "1", True),
        ("local_gpu", "auto", False),
        (None, "auto", False),
    ],
)
def test_who_needs_a_gpu(
    machine: Machine, instance: str | None, switch: str, *, fails: bool
) -> None:
    machine.instance(instance)
    if fails:
        with pytest.raises(UserError, match="set ALEXMRI_REQUIRE_GPU=0 to use the CPU"):
            machine.start(ALEXMRI_REQUIRE_GPU=switch)
    else:
        started = machine.start(ALEXMRI_REQUIRE_GPU=switch)
        assert started == Startup(("GPU: none, the CPU computes",), {})


def test_the_switch_for_a_required_gpu_takes_auto_1_and_0(machine: Machine) -> None:
    with pytest.raises(UserError, match="ALEXMRI_REQUIRE_GPU is 'true'; it takes auto, 1 or 0"):
        machine.start(ALEXMRI_REQUIRE_GPU="true")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null"])
def test_a_resource_file_without_an_instance_is_somebody_elses_complaint(
    machine: Machine, content: str
) -> None:
    machine.instance(None)
    (machine.root / "ml/input/config/resourceconfig.json").write_text(content, encoding="utf-8")
    assert machine.start().lines == ("GPU: none, the CPU computes",)


@pytest.mark.parametrize("text", [PROPRIETARY, OPEN])
def test_the_kernel_module_is_found_in_both_its_kinds(machine: Machine, text: str) -> None:
    machine.driver("580.65.06", None, text)
    assert kernel_driver(machine.root / "proc") == "580.65.06"


def test_the_files_of_pytorch_say_what_pytorch_says() -> None:
    found = installed_torch()
    assert found.version == torch.__version__
    assert ".".join(map(str, found.cuda or ())) == torch.version.cuda
    assert [f"sm_{10 * major + minor}" for major, minor in found.capabilities] == (
        torch.cuda.get_arch_list()
    )


def test_the_table_of_builds_is_pytorchs() -> None:
    for tag, build in BUILDS.items():
        codes = torch.cuda.PYTORCH_RELEASES_CODE_CC[f"{tag[2:4]}.{tag[4:]}"]["x86_64"]
        assert {10 * major + minor for major, minor in build.capabilities} == codes
        assert str(build.cuda) == tag[2:4]


def test_the_tables_of_sagemaker_are_those_of_its_api() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    variant = model.shape_for("ProductionVariant").members["InferenceAmiVersion"]
    for driver, ami in INFERENCE_AMIS.items():
        assert ami in variant.enum
        assert f"NVIDIA driver version: {driver}" in variant.documentation.partition(ami)[2][:200]
    types = model.shape_for("TrainingInstanceType").enum
    assert {name.rpartition(".")[0] for name in types} >= set(FAMILIES)


def test_torch_is_not_imported_to_find_out() -> None:
    check = (
        "import os, sys, pathlib, alexmri.contract.gpu as gpu, alexmri.contract.paths as paths\n"
        "gpu.gpu_environment(os.environ, paths.Paths(pathlib.Path('/nowhere')))\n"
        "sys.exit(', '.join({'torch', 'numpy', 'pydantic'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
