"""The folder `code` must not shadow the standard library, and the arrows must hold."""

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_folder_code_does_not_shadow_the_module_code() -> None:
    assert not (ROOT / "code" / "__init__.py").exists()
    check = "import pdb, code; assert hasattr(code, 'InteractiveConsole')"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_the_tests_shadow_no_module_of_others() -> None:
    """tests/docker/platform.py and the folder docker are named as modules that others import."""
    for name in ("platform", "docker"):
        found = PathFinder.find_spec(name)
        assert found
        assert not Path(found.origin or "").is_relative_to(ROOT / "tests")


@pytest.mark.parametrize("path", sorted((ROOT / "code").rglob("__init__.py")))
def test_package_files_are_empty(path: Path) -> None:
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("alexmri.data.pixels", "torch albumentations cv2 scipy sklearn wandb boto3"),
        # scipy is what the audit before every training needs.
        ("alexmri.training.job", "albumentations cv2 sklearn matplotlib wandb boto3"),
    ],
    ids=["decoding needs numpy and Pillow", "the first step waits for nothing of the last"],
)
def test_nothing_needless_is_imported(module: str, heavy: str) -> None:
    check = (
        f"import sys, {module}; sys.exit(', '.join(set({heavy.split()}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
