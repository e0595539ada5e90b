"""`bench/train.py` on any CPU: the precision it measures in, and the start of a training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


def run(code: str, *arguments: Path, **environment: str) -> str:
    """Return the last line that some code prints which finds the programs in bench/."""
    paths = os.pathsep.join([str(REPOSITORY / "bench"), str(REPOSITORY / "code")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_cpu_that_only_emulates_bf16_is_measured_in_fp32() -> None:
    code = "import train; print(train.usable_precision())"
    assert run(code, ONEDNN_MAX_CPU_ISA="AVX2", CUDA_VISIBLE_DEVICES="") == "fp32"


def test_the_start_of_a_training_is_timed_and_its_memory_is_measured(
    demo: Path, tmp_path: Path
) -> None:
    code = (
        "import json, sys, train; from pathlib import Path; train.TRAINED_SECONDS = 0\n"
        "bench = train.Bench.of(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps(train.start_and_memory(bench)))"
    )
    figures = json.loads(run(code, demo, tmp_path))
    assert figures["seconds_to_first_step"] > 0
    assert figures["peak_memory_mib"] > 50
