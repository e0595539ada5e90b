"""Nobody pays for pydicom and nibabel who reads no scan."""

import subprocess
import sys

import pytest

HEAVY = ("pydicom", "nibabel", "scipy", "gdcm")
PICTURE = """
import io, numpy as np
from PIL import Image
from alexmri.serving.app import create_app
from alexmri.serving.decode import PixelBudget, read_records, to_pixels
from alexmri.data.slicing import Slicing
from alexmri.serving.scans import expand
buffer = io.BytesIO()
Image.fromarray(np.eye(40, dtype=np.uint8)).save(buffer, "PNG")
with PixelBudget(float("inf")) as budget:
    records, _ = expand(read_records("", buffer.getvalue(), budget), budget, Slicing())
    to_pixels(records, budget, image_size=32, channels=1)
"""
HELP = "from alexmri.cli import cli; cli.main(['slices', '--help'], standalone_mode=False)"


@pytest.mark.parametrize("code", [PICTURE, HELP], ids=["a picture is served", "help"])
def test_what_reads_no_scan_imports_no_reader_of_scans(code: str) -> None:
    found = f"{code}\nimport sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
