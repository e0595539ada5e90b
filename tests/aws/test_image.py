"""`alexmri aws push`: a real image into a real registry, beside moto's ECR."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import ACCOUNT, REGION, Cloud, Run, client, error_of

HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
PASSWORD = f"{ACCOUNT}-auth-token"
# That password, for the registry.
HTPASSWD = "AWS:$2b$05$abcdefghijklmnopqrstuu/4ofrUS75HrKu6f.iuRo0I/XlrmpqlC\n"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with an image of one file."""
    if not shutil.which("git"):
        missing("there is no git")
    folder = tmp_path / "source"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "Dockerfile").write_text(
        "FROM scratch\nARG REVISION\nARG MORE=no\n"
        "LABEL org.opencontainers.image.revision=${REVISION} more=${MORE}\nCOPY file /\n"
    )
    (folder / "file").write_text("one")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    return folder


class Registry:
    """Debian's docker-registry on a free port of loopback, with a password."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        (folder / "htpasswd").write_text(HTPASSWD)
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
            "http": {"addr": self.host},
            "auth": {"htpasswd": {"realm": "r", "path": str(folder / "htpasswd")}},
            "log": {"level": "error", "accesslog": {"disabled": True}},
        }
        (folder / "config.yml").write_text(json.dumps(config))
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.host}/v2/")
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        return True

    def get(self, path: str) -> tuple[dict[str, str], Any] | None:
        """Return headers and document of something in the repository, None if it is not there."""
        import base64

        login = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()
        headers = {"Accept": f"{MANIFEST}, {INDEX}", "Authorization": f"Basic {login}"}
        request = urllib.request.Request(f"http://{self.host}/v2/alexmri/{path}", headers=headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return dict(answer.headers), json.loads(answer.read())
        except urllib.error.HTTPError:
            return None


@pytest.fixture
def registry(cloud: Cloud, tmp_path: Path) -> Iterator[Registry]:
    """A registry that moto's ECR takes for its own."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True).returncode
    ):
        missing("no Docker engine answers `docker info`")
    if not shutil.which("docker-registry"):
        missing("there is no docker-registry; on Debian: apt-get install docker-registry")
    registry = Registry(tmp_path)
    cloud.renamed = {f"https://{HOST}": registry.host, HOST: registry.host}

    def describe(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        tag = body["imageIds"][0]["imageTag"]
        found = registry.get(f"manifests/{tag}")
        if found is None:
            return 400, {"__type": "ImageNotFoundException"}
        headers, manifest = found
        details = {
            "imageDigest": headers["Docker-Content-Digest"],
            "imageManifestMediaType": manifest["mediaType"],
        }
        return 200, {"imageDetails": [details]}

    cloud.answers["DescribeImages"] = describe
    yield registry
    cloud.renamed = {}
    registry.process.terminate()
    registry.process.wait()


@pytest.mark.docker
def test_push_makes_the_repository_and_pushes_one_manifest(
    cloud: Cloud, registry: Registry, source: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    revision = git(source, "rev-parse", "HEAD")
    done = run("push", source, "--build-arg", "MORE=yes")
    name = done.stdout.splitlines()[-1]
    assert re.fullmatch(rf"{registry.host}/alexmri@sha256:[0-9a-f]{{64}}", name)
    headers, manifest = registry.get(f"manifests/{revision}") or ({}, {})
    assert name.endswith(headers["Docker-Content-Digest"])
    # One image, not an index around it.
    assert manifest["mediaType"] == MANIFEST
    _, config = registry.get(f"blobs/{manifest['config']['digest']}") or ({}, {})
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    labels = config["config"]["Labels"]
    assert labels == {"org.opencontainers.image.revision": revision, "more": "yes"}
    (made,) = cloud.sent("CreateRepository")
    assert made["imageTagMutability"] == "IMMUTABLE"
    assert made["imageScanningConfiguration"] == {"scanOnPush": True}
    # The password is nowhere: neither printed nor in a file.
    printed = "".join([done.output, *capfd.readouterr()])
    assert PASSWORD not in printed
    assert not list(Path("/dev/shm").glob("alexmri-login-*"))  # noqa: S108
    # Again: neither built nor pushed.
    asked = len(cloud.requests)
    again = run("push", source)
    assert again.stdout.splitlines()[-1] == name
    assert "is in alexmri already: nothing to push" in again.stdout
    assert set(cloud.targets()[asked:]) == {"DescribeRepositories", "DescribeImages"}
    subprocess.run(["docker", "rmi", f"{registry.host}/alexmri:{revision}"], capture_output=True)


@pytest.mark.docker
def test_a_push_that_was_cut_off_goes_on(
    cloud: Cloud, registry: Registry, source: Path, run: Run
) -> None:
    """The registry refuses in the middle: no tag is there, and the same command makes it."""
    revision = git(source, "rev-parse", "HEAD")
    cloud.refuse("GetAuthorizationToken", "ExpiredTokenException", "expired")
    assert "have expired" in error_of(run("push", source, ok=False))
    assert registry.get(f"manifests/{revision}") is None
    cloud.answers.pop("GetAuthorizationToken")
    wrong = {"authorizationToken": "QVdTOndyb25n", "proxyEndpoint": f"https://{registry.host}"}
    cloud.answer("GetAuthorizationToken", {"authorizationData": [wrong]})
    told = error_of(run("push", source, ok=False))
    assert f"{registry.host} refuses the login" in told
    assert registry.get(f"manifests/{revision}") is None
    cloud.answers.pop("GetAuthorizationToken")
    run("push", source)
    assert registry.get(f"manifests/{revision}")
    assert len(cloud.sent("CreateRepository")) == 1
    subprocess.run(["docker", "rmi", f"{registry.host}/alexmri:{revision}"], capture_output=True)


# --- without Docker

# Writes down with which context each command runs, as `docker` finds it.
DOCKER = """#!/bin/sh
folder="${DOCKER_CONFIG:-$HOME/.docker}"
if [ "$1" = --config ]; then folder="$2"; shift 2; fi
echo "$1 $(cat "$folder/config.json") $(cat "$folder/contexts/meta/colima")" >> "$HOME/commands"
[ "$1" != login ] || { cat > /dev/null; echo '{"auths": 1}' > "$folder/config.json"; }
"""


def test_build_and_push_use_the_context_of_the_user(
    cloud: Cloud, source: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Docker Desktop, colima and rootless Docker: the engine is that of a context."""
    own = {"currentContext": "colima", "auths": {"registry": {"auth": "c2VjcmV0"}}}
    home = tmp_path / "home"
    (home / ".docker" / "contexts" / "meta").mkdir(parents=True)
    (home / ".docker" / "contexts" / "meta" / "colima").write_text("colima.sock")
    (home / ".docker" / "config.json").write_text(json.dumps(own))
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    pushed = {"imageDetails": [{"imageDigest": "sha256:1"}]}

    def describe(body: object) -> tuple[int, dict[str, Any]]:
        commands = home / "commands"
        there = commands.is_file() and "push" in commands.read_text()
        return (200, pushed) if there else (400, {"__type": "ImageNotFoundException"})

    cloud.answers["DescribeImages"] = describe
    run("push", source)
    build, login, push = (home / "commands").read_text().splitlines()
    assert build == f"buildx {json.dumps(own)} colima.sock"
    assert login == 'login {"currentContext": "colima"} colima.sock'
    assert push.startswith("push ")
    assert push.endswith(" colima.sock")
    # The user's own file and contexts are as they were.
    assert json.loads((home / ".docker" / "config.json").read_text()) == own
    assert (home / ".docker" / "contexts" / "meta" / "colima").read_text() == "colima.sock"


def test_a_dirty_tree_is_refused_unless_allowed(cloud: Cloud, source: Path, run: Run) -> None:
    (source / "file").write_text("two")
    told = error_of(run("push", source, ok=False))
    assert "has changes that are not committed (file, …)" in told
    assert cloud.requests == []
    tags = []
    for text in ("two", "three", "two"):
        (source / "file").write_text(text)
        plan = json.loads(run("push", source, "--allow-dirty", "--dry-run").stdout)
        tags.append(plan[1]["request"]["imageIds"][0]["imageTag"])
    assert re.fullmatch(r"[0-9a-f]{40}-dirty-[0-9a-f]{8}", tags[0])
    assert tags[0] == tags[2] != tags[1]
    (source / "new").write_text("new")
    plan = json.loads(run("push", source, "--allow-dirty", "--dry-run").stdout)
    assert plan[1]["request"]["imageIds"][0]["imageTag"] not in tags


def test_a_dry_run_shows_all_and_asks_nothing(cloud: Cloud, source: Path, run: Run) -> None:
    plan = json.loads(run("push", source, "--dry-run").stdout)
    steps = [step.get("call") or " ".join(step["run"][:3]) for step in plan]
    assert steps == [
        *("create_repository", "describe_images", "docker buildx build"),
        *("get_authorization_token", "docker login --username", "docker push " + plan[5]["run"][2]),
        "describe_images",
    ]
    build = plan[2]["run"]
    assert {"--provenance=false", "--sbom=false", "linux/amd64"} <= set(build)
    assert build[build.index("--output") + 1] == "type=docker,oci-mediatypes=false"
    assert cloud.requests == []


def test_an_image_for_another_cuda_has_a_tag_of_its_own(
    cloud: Cloud, source: Path, run: Run
) -> None:
    """Else the second flavour of a revision would be "there already"."""
    revision = git(source, "rev-parse", "HEAD")
    plan = json.loads(run("--cuda", "cu126", "push", source, "--dry-run").stdout)
    assert plan[1]["request"]["imageIds"] == [{"imageTag": f"{revision}-cu126"}]
    assert "TORCH_CUDA=cu126" in plan[2]["run"]
    plan = json.loads(run("push", source, "--cpu", "--dry-run").stdout)
    assert plan[1]["request"]["imageIds"] == [{"imageTag": f"{revision}-cpu"}]
    assert "TORCH_CUDA=cpu" in plan[2]["run"]
    wrong = run("push", source, "--build-arg", "TORCH_CUDA=cu126", ok=False)
    assert "set cuda in alexmri.toml" in error_of(wrong)
    assert cloud.requests == []


OCI = "application/vnd.oci.image.manifest.v1+json"


def put_image(kind: str, tag: str) -> str:
    """Put an image into ECR whose manifest is of type `kind`; return its name with its digest."""
    layer = {"mediaType": "x", "size": 1, "digest": "sha256:" + "cd" * 32}
    document = {"schemaVersion": 2, "mediaType": kind, "config": layer, "layers": [layer]}
    if kind == INDEX:
        document = {
            "schemaVersion": 2,
            "mediaType": kind,
            "manifests": [layer | {"mediaType": OCI}],
        }
    made = client("ecr").put_image(
        repositoryName="alexmri",
        imageManifest=json.dumps(document),
        imageManifestMediaType=kind,
        imageTag=tag,
    )
    return f"{HOST}/alexmri@{made['image']['imageId']['imageDigest']}"


@pytest.mark.parametrize("kind", [OCI, INDEX])
@pytest.mark.parametrize("by", ["tag", "digest", "push"])
def test_a_manifest_that_sagemaker_refuses_is_refused_here(
    cloud: Cloud, source: Path, image: str, run: Run, kind: str, by: str
) -> None:
    """SageMaker takes neither a single OCI manifest nor an index."""
    revision = git(source, "rev-parse", "HEAD")
    name = put_image(kind, revision)
    given = name if by == "digest" else revision
    train = ("train", "--data", "s3://slices/x", "--image", given)
    told = error_of(run("push", source, ok=False) if by == "push" else run(*train, ok=False))
    assert f"has a manifest of type {kind}, and SageMaker takes only {MANIFEST}" in told
    if by == "push":
        assert f"--repository-name alexmri --image-ids imageTag={revision}` first" in told
    assert not cloud.sent("CreateTrainingJob")


def test_a_folder_without_git_is_refused(cloud: Cloud, tmp_path: Path, run: Run) -> None:
    assert "is not a git repository with a commit" in error_of(run("push", tmp_path, ok=False))


def test_an_image_that_is_not_there_is_named(cloud: Cloud, image: str, run: Run) -> None:
    told = error_of(run("train", "--data", "s3://slices/x", "--image", "gone", ok=False))
    assert told == (
        "alexmri has no image gone; `alexmri aws push` makes it, or name another with --image"
    )


def test_a_repository_whose_tags_move_is_warned_of(cloud: Cloud, source: Path, run: Run) -> None:
    client("ecr").create_repository(repositoryName="alexmri")
    cloud.answer("DescribeImages", {"imageDetails": [{"imageDigest": "sha256:1"}]})
    assert "can be moved to other images" in run("push", source).stdout
