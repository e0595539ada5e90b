"""What serve and preflight find out and say before torch is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..fake_cuda import FakeCuda
from .conftest import PATIENCE, REPOSITORY, Tree

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "all"}


def on_a_gpu_instance_with_an_old_driver(root: Path) -> Tree:
    library = FakeCuda(12040).install(root / "lib", "550.163.01")
    tree = Tree(root / "ml", {"LD_LIBRARY_PATH": str(library)})
    config = tree.root / "input" / "config" / "resourceconfig.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"current_instance_type": "ml.g5.xlarge"}), encoding="utf-8")
    return tree


def test_serve_ends_at_once_where_the_gpu_it_needs_cannot_work(tmp_path: Path) -> None:
    result = on_a_gpu_instance_with_an_old_driver(tmp_path).run("serve")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ml.g5.xlarge is a GPU instance, but the NVIDIA driver is ")
    assert "InferenceAmiVersion to al2023-ami-sagemaker-inference-gpu-4-1" in line


def test_serve_refuses_a_switch_it_does_not_know(tmp_path: Path) -> None:
    result = Tree(tmp_path, {"ALEXMRI_CUDA_COMPAT": "maybe"}).run("serve")
    assert result.returncode == 2
    assert result.stderr == "error: ALEXMRI_CUDA_COMPAT is 'maybe'; it takes auto, on or off\n"


def test_serve_says_what_it_has_before_it_starts(tmp_path: Path) -> None:
    result = Tree(tmp_path, NO_GPU).run("serve")
    assert result.stdout.splitlines()[1].startswith("resources: ")
    assert "the CPU computes" in result.stdout.splitlines()[2]
    assert "is not a model" in result.stderr


def test_preflight_prints_a_fact_per_line(tree: Tree) -> None:
    tree.extra |= NO_GPU
    (tree.root / "model").mkdir()
    result = tree.run("preflight")
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    facts = dict(line.split(": ", 1) for line in lines)
    assert facts["channel training"] == "3 entries"
    assert facts[str(tree.root / "model")].startswith("writable, ")
    assert facts[str(tree.root / "checkpoints")] == "not there"
    assert facts["torch built for cards"].startswith("7.5, 8.0, ")
    assert {"NVIDIA driver", "cuda-compat", "shared memory free", "user"} <= set(facts)
    assert "the CPU computes" in last


def test_preflight_tells_all_it_found_before_it_fails(tmp_path: Path) -> None:
    result = on_a_gpu_instance_with_an_old_driver(tmp_path).run("preflight")
    assert result.returncode == 2
    facts = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert facts["CUDA of the driver"] == "12.4"
    assert facts["cards"] == "Tesla T4 (compute capability 7.5, 16.0 GiB)"
    assert facts["channels"] == f"none in {tmp_path / 'ml' / 'input' / 'data'}"
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ml.g5.xlarge is a GPU instance, but ")


@pytest.mark.parametrize("closed", ["input/data/training", "input/data"])
def test_preflight_names_a_folder_it_may_not_read(tree: Tree, closed: str) -> None:
    tree.extra |= NO_GPU
    folder = tree.root / closed
    folder.chmod(0)
    # Root reads everything, unless these are taken away.
    powers = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}"]
    try:
        result = subprocess.run(
            [*(command if os.geteuid() == 0 else []), REPOSITORY / "container" / "preflight"],
            env=tree.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        folder.chmod(0o755)
    assert result.returncode == 2
    assert "cards: " in result.stdout  # all it found, first
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {folder} cannot be read by user ")


def test_preflight_fails_where_a_gpu_is_required_and_none_is_there(tmp_path: Path) -> None:
    result = Tree(tmp_path, NO_GPU | {"ALEXMRI_REQUIRE_GPU": "1"}).run("preflight")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ALEXMRI_REQUIRE_GPU is 1, but ")


@pytest.mark.parametrize("command", ["train", "crossval", "evaluate", "predict", "serve"])
def test_every_command_refuses_a_machine_without_the_gpu_that_is_required(
    tree: Tree, command: str
) -> None:
    """`alexmri train` with one worker once trained on the CPU all the same."""
    data = tree.root / "input" / "data" / "training"
    image = next((data / "NonDemented").iterdir())
    arguments = {
        "train": ["--data", data, "--out", tree.root / "out"],
        "crossval": ["--data", data, "--out", tree.root / "out"],
        "evaluate": [tree.root, data],
        "predict": [tree.root, image],
        "serve": [tree.root],
    }[command]
    result = subprocess.run(
        [Path(sys.executable).with_name("alexmri"), command, *arguments],
        env=tree.environment() | NO_GPU | {"ALEXMRI_REQUIRE_GPU": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ALEXMRI_REQUIRE_GPU is 1, but ")


def test_a_process_that_needs_other_libraries_starts_anew_with_them() -> None:
    """A worker of somebody else's torchrun once set LD_LIBRARY_PATH when it was too late."""
    script = (
        "from pathlib import Path; from alexmri.contract.gpu import adopt;"
        " adopt({'LD_LIBRARY_PATH': '/compat'}); print(Path('/proc/self/environ').read_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": "/other"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "LD_LIBRARY_PATH=/compat\0" in done.stdout
