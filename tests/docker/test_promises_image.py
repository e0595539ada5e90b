"""What our image promises to be: what a platform looks at before it runs anything."""

import json

import pytest

from .docker_helpers import Docker

pytestmark = [pytest.mark.docker, pytest.mark.promise]


def test_a_platform_takes_it(docker: Docker, image: str) -> None:
    """Image: linux/amd64, root, no entry point and no volume in the way; train is its command."""
    facts = json.loads(docker("image", "inspect", image).stdout)[0]
    assert (facts["Os"], facts["Architecture"]) == ("linux", "amd64")
    config = facts["Config"]
    assert config["User"] in ("", "root")
    assert not config.get("Entrypoint")
    assert not config.get("Volumes")
    assert config["Cmd"] == ["train"]
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


def test_the_executables_answer(docker: Docker, image: str) -> None:
    """Image: train, serve and evaluate are on the path, mode 0755, and explain themselves."""
    for name in ("train", "serve", "evaluate"):
        mode = docker("run", "--rm", image, "sh", "-c", f"stat -c %a $(command -v {name})")
        assert mode.stdout == "755\n"
        explained = docker("run", "--rm", "--network", "none", image, name, "--help")
        assert "/opt/ml" in explained.stdout


def test_the_platforms_folder_is_empty(docker: Docker, image: str) -> None:
    """Image: nothing of it is in /opt/ml, which belongs to the platform."""
    assert "ml" not in docker("run", "--rm", image, "ls", "/opt").stdout.split()


def test_the_driver_is_the_hosts(docker: Docker, image: str) -> None:
    """Image: no NVIDIA driver inside; the runtime is asked to bring the host's."""
    find = "find / -xdev -name 'libcuda.so*' -not -path '*/compat/*' -not -path '*/stubs/*'"
    assert not docker("run", "--rm", image, "sh", "-c", find).stdout
    config = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(
        config["Env"]
    )


def test_what_the_sdks_starter_needs_is_there(docker: Docker, image: str) -> None:
    """Image: bash, python3 and pip, without which the starter of SDK 3 gives up."""
    script = "command -v bash && command -v python3 && command -v pip"
    docker("run", "--rm", image, "sh", "-c", script)
