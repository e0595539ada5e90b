"""What is in the image, and what it costs to build it again."""

import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from .docker_helpers import REPOSITORY, Docker, copy_of_repository

pytestmark = pytest.mark.docker
MEGABYTE = 10**6
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_a_platform_can_start_it(docker: Docker, image: str) -> None:
    facts = json.loads(docker("image", "inspect", image).stdout)[0]
    assert (facts["Os"], facts["Architecture"]) == ("linux", "amd64")
    assert facts["Config"]["Cmd"] == ["train"]
    assert not facts["Config"].get("Entrypoint")
    assert not facts["Config"].get("Volumes")
    script = (
        'for name in train serve evaluate preflight; do stat -c "%a" "$(command -v $name)"; done'
    )
    assert docker("run", "--rm", image, "sh", "-c", script).stdout.split() == ["755"] * 4
    printed = docker("run", "--rm", image, "alexmri", "--version").stdout
    assert printed.split()[-1] == PROJECT["version"]


def test_it_says_what_it_is(docker: Docker, image: str, base_image: str) -> None:
    def labels(name: str) -> dict[str, str]:
        config = json.loads(docker("image", "inspect", name).stdout)[0]["Config"]
        assert config["User"] in ("", "root")  # who owns the mounts of a platform
        # Else NVIDIA's base has older drivers refused before anybody can say what helps.
        assert "NVIDIA_DISABLE_REQUIRE=true" in config["Env"]
        found: dict[str, str] = config["Labels"]
        return found

    found = labels(image)
    assert found["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert found["org.opencontainers.image.version"] == PROJECT["version"]
    assert found["org.opencontainers.image.licenses"] == PROJECT["license"]

    other = f"{image}-labelled"
    arguments = ("--build-arg", "REVISION=0a1b2c", "--build-arg", "SOURCE=https://example.org/a")
    base = ("--build-arg", f"BASE_IMAGE={base_image}")
    docker("build", *base, *arguments, "--tag", other, str(REPOSITORY))
    found = labels(other)
    docker("image", "rm", other)
    assert found["org.opencontainers.image.revision"] == "0a1b2c"
    assert found["org.opencontainers.image.source"] == "https://example.org/a"


def test_a_carriage_return_in_an_executable_ends_the_build(
    docker: Docker, image: str, base_image: str, tmp_path: Path
) -> None:
    folder = copy_of_repository(tmp_path / "repository")
    train = folder / "container" / "train"
    train.write_bytes(train.read_bytes().replace(b"\n", b"\r\n"))
    base = ("--build-arg", f"BASE_IMAGE={base_image}")
    result = docker("build", *base, "--tag", f"{image}-windows", str(folder), check=False)
    assert result.returncode != 0
    assert "container/train" in result.stderr
    assert "Windows line endings" in result.stderr


def test_ours_is_little_beside_base_and_locked_wheels(
    docker: Docker, image: str, base_image: str
) -> None:
    lines = docker("history", "--no-trunc", "--format", "{{json .}}", "--human=false", image).stdout
    base = docker("history", "--quiet", "--no-trunc", base_image).stdout.split()
    layers = [json.loads(line) for line in lines.splitlines()][: -len(base)]
    ours = [
        int(layer["Size"])
        for layer in layers
        if "COPY /opt/venv" not in layer["CreatedBy"] and "apt-get" not in layer["CreatedBy"]
    ]
    assert len(ours) < len(layers)
    script = "find /opt/venv -name '*.pyc' -printf '%s\\n'"
    bytecode = docker("run", "--rm", image, "sh", "-c", script).stdout.split()
    assert sum(ours) + sum(int(size) for size in bytecode) < 60 * MEGABYTE


def test_the_virtual_environment_holds_the_locked_wheels_and_pip(
    docker: Docker, image: str
) -> None:
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==([^ ]+)", lock, flags=re.MULTILINE))
    listed = json.loads(docker("run", "--rm", image, "pip", "list", "--format", "json").stdout)
    installed = {
        (re.sub(r"[-_.]+", "-", row["name"]).lower(), row["version"])
        for row in listed
        if row["name"] not in ("alexmri", "pip")
    }
    # Without a compiler Triton can do nothing; the Dockerfile removes it.
    wanted = {(name, version) for name, version in locked if name != "triton"}
    assert installed == {(re.sub(r"[-_.]+", "-", name), version) for name, version in wanted}
    assert "pip" in {row["name"] for row in listed}


def test_no_compiler_no_cache_no_secret_stays(docker: Docker, image: str) -> None:
    script = """
    for tool in cc gcc g++ make git uv; do command -v $tool; done
    ls -A /var/lib/apt/lists /var/cache/apt /root/.cache /tmp 2>/dev/null | grep -v ':$'
    find /opt/venv -name tests -o -path '*/torch/test' -o -path '*/torch/include' -o -name '*.a'
    find /opt/program -iname '*.jp*g' -o -iname '*.png' -o -name tests
    """
    assert docker("run", "--rm", image, "sh", "-c", script, check=False).stdout.split() == []
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert not re.search(r"(?i)secret|token|password|api_key|://", history)


def test_the_only_bytecode_is_of_what_serve_imports(docker: Docker, image: str) -> None:
    script = "find /opt -name '*.pyc' -printf '%s %P\\n'"
    listed = [
        line.split()
        for line in docker("run", "--rm", image, "sh", "-c", script).stdout.splitlines()
    ]
    assert sum(int(size) for size, _ in listed) < 30 * MEGABYTE
    ours = [path for _, path in listed if "alexmri" in path]
    assert any("serving/__pycache__/app." in path for path in ours)
    assert not [path for path in ours if "/training/" in path or "/aws/" in path]


def test_the_inventory_names_every_package_with_version_and_licence(
    docker: Docker, image: str, base_image: str, tmp_path: Path
) -> None:
    """The build checks it by CycloneDX's schema."""
    arguments = ("--target", "sbom", "--build-arg", f"BASE_IMAGE={base_image}")
    docker("build", *arguments, "--output", str(tmp_path), str(REPOSITORY))
    document = json.loads((tmp_path / "alexmri.cdx.json").read_text(encoding="utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "alexmri"
    components = document["components"]
    assert all(each["version"] and each["licenses"] for each in components)
    installed = json.loads(docker("run", "--rm", image, "pip", "list", "--format", "json").stdout)
    python = {(c["name"], c["version"]) for c in components if c["purl"].startswith("pkg:pypi/")}
    assert python == {(e["name"], e["version"]) for e in installed if e["name"] != "alexmri"}
    debian = {each["name"] for each in components if each["purl"].startswith("pkg:deb/")}
    assert {"python3", "libc6", "bash"} <= debian


def test_a_code_change_is_built_within_20_seconds(
    docker: Docker, image: str, base_image: str, tmp_path: Path
) -> None:
    folder = copy_of_repository(tmp_path / "repository")
    command = ("build", "--build-arg", f"BASE_IMAGE={base_image}", "--tag", f"{image}-changed")
    with (folder / "code" / "alexmri" / "errors.py").open("a", encoding="utf-8") as module:
        module.write("\nCHANGED = True\n")
    began = time.monotonic()
    docker(*command, str(folder))
    seconds = time.monotonic() - began
    script = "import alexmri.errors; print(alexmri.errors.CHANGED)"
    changed = docker("run", "--rm", f"{image}-changed", "python3", "-c", script)
    docker("image", "rm", f"{image}-changed")
    assert changed.stdout.strip() == "True"
    assert seconds < 20
