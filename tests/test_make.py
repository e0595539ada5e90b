"""What `make` says before it builds the image; a script stands for Docker."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def base_image(folder: Path, docker: str) -> "subprocess.CompletedProcess[str]":
    """Run `make base-image` with the shell script `docker` in place of the command."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    (folder / "docker").write_text(f"#!/bin/sh\n{docker}\n")
    (folder / "docker").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["make", "base-image"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


def test_before_the_first_build_a_line_says_that_it_takes_minutes(tmp_path: Path) -> None:
    first = base_image(tmp_path, 'test "$*" != "image inspect alexmri"')
    assert first.returncode == 0, first.stderr
    assert "the first build takes minutes" in first.stdout
    assert "takes minutes" not in base_image(tmp_path, "exit 0").stdout


def test_where_the_base_image_cannot_be_pulled_the_reason_of_docker_stays(tmp_path: Path) -> None:
    docker = 'test "$1" != pull || echo "denied: no such repository" >&2; exit 1'
    refused = base_image(tmp_path, docker)
    assert refused.returncode
    assert "denied: no such repository" in refused.stderr
    assert "name another Debian or Ubuntu image with BASE_IMAGE=" in refused.stderr
