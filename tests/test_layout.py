"""The folder `code` must not shadow the standard library, and the arrows must hold."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_folder_code_does_not_shadow_the_module_code() -> None:
    assert not (ROOT / "code" / "__init__.py").exists()
    check = "import pdb, code; assert hasattr(code, 'InteractiveConsole')"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "code").rglob("__init__.py")))
def test_package_files_are_empty(path: Path) -> None:
    assert path.read_text() == ""


def test_decoding_imports_numpy_and_pillow_alone() -> None:
    check = (
        "import sys, alexmri.data.pixels\n"
        "heavy = {'torch', 'albumentations', 'cv2', 'scipy', 'sklearn', 'wandb', 'boto3'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
