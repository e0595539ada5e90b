"""Nobody pays for pydicom and nibabel who reads no scan; serving: test_description.py."""

import subprocess
import sys

HELP = "from alexmri.cli import cli; cli.main(['slices', '--help'], standalone_mode=False)"


def test_help_imports_no_reader_of_scans() -> None:
    heavy = {"pydicom", "nibabel", "scipy", "numpy"}
    code = f"{HELP}\nimport sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--label-column" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
