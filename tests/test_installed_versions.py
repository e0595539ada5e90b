"""A package that is not installed has no version, and stops nothing. The two locks agree."""

import re
import tomllib
from pathlib import Path

import pytest

from alexmri.contract.resources import installed_version
from alexmri.training import provenance


def test_a_missing_package_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "LIBRARIES", ("numpy", "nowhere"))
    versions = provenance.library_versions()
    assert versions["nowhere"] == "unknown"
    assert versions["numpy"] == installed_version("numpy") != "unknown"


def test_the_lock_without_cuda_is_the_other_one_less_pytorch_and_cuda() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
        found = re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==([^ ]+)", text, flags=re.MULTILINE)
        return dict(found)

    whole, cpu = pins("requirements.lock"), pins("requirements-cpu.lock")
    assert cpu.items() <= whole.items()
    left_out = whole.keys() - cpu.keys()
    ours = {name for name in left_out if not name.startswith(("nvidia-", "cuda-"))}
    assert ours == {"torch", "torchvision", "triton"}
    assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))]


def test_the_version_of_the_project_is_also_the_label_of_the_image() -> None:
    """A Dockerfile cannot read a label from a file; all else asks the installed package."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dockerfile = (root / "Dockerfile").read_text(encoding="utf-8")
    assert f"org.opencontainers.image.version={project['version']} " in dockerfile
