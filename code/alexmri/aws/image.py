"""The image in ECR: built from a revision, pushed once under its tag, known by its digest."""

import base64
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, Call, Run
from alexmri.aws.config import AwsConfig
from alexmri.errors import UserError
from alexmri.files import read_json_object, sha256_of
from alexmri.terminal import Terminal

# Of linux/amd64, and one manifest: an index with attestations is refused by SageMaker.
BUILD = ("--platform", "linux/amd64", "--provenance=false", "--sbom=false", "--load")


# What to do in place of committing where an image is looked for.
OTHERWISE = "name an image that is there with --image"


@dataclass(frozen=True, slots=True)
class Source:
    """What an image is made from: a folder with a Dockerfile, at a revision."""

    folder: Path
    revision: str
    build_arguments: tuple[str, ...] = ()
    # An image that stands on this machine already, in place of a build.
    image: str | None = None


def revision_of(
    folder: Path, *, allow_dirty: bool = False, instead: str = "pass --allow-dirty"
) -> str:
    """Return the git revision of `folder`, with what was changed since as a digest behind it.

    `instead` says in the error what can be done if not committing.

    Raises:
        UserError: no git repository, or changes that are not committed and not allowed.
    """
    head = _git(folder, "rev-parse", "HEAD").strip()
    changes = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    if not changes:
        return head
    if not allow_dirty:
        first = changes.splitlines()[0][3:]
        raise UserError(
            f"{folder} has changes that are not committed ({first}, …), so no revision would tell"
            f" what is in the image; commit them, or {instead}"
        )
    # New files count too, which `git diff` leaves out.
    digest = hashlib.sha256(_git(folder, "diff", "HEAD", "--binary").encode())
    for name in _git(folder, "ls-files", "--others", "--exclude-standard", "-z").split("\0"):
        if name:
            digest.update(f"{name}\0{sha256_of(folder / name)}".encode())
    return f"{head}-dirty-{digest.hexdigest()[:8]}"


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError:
        raise UserError("there is no `git` here, which names the image; install it") from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{folder} is no git repository with a commit ({error.stderr.strip()}); images are"
            " named by their revision"
        ) from None


def repository_request(config: AwsConfig) -> dict[str, Any]:
    """Return CreateRepository: tags that never move, and a scan of every push."""
    encryption: dict[str, str] = {"encryptionType": "AES256"}
    if config.kms_key:
        encryption = {"encryptionType": "KMS", "kmsKey": config.kms_key}
    return {
        "repositoryName": config.repository,
        "imageTagMutability": "IMMUTABLE",
        "imageScanningConfiguration": {"scanOnPush": True},
        "encryptionConfiguration": encryption,
        "tags": config.tag_list(),
    }


def build_command(source: Source, tagged: str) -> list[str]:
    """Return the command that makes the image named `tagged`."""
    if source.image:
        return ["docker", "tag", source.image, tagged]
    arguments = (f"REVISION={source.revision}", *source.build_arguments)
    given = [part for argument in arguments for part in ("--build-arg", argument)]
    return ["docker", "buildx", "build", *BUILD, *given, "--tag", tagged, str(source.folder)]


def push_calls(config: AwsConfig, source: Source, region: str) -> list[Call | Run]:
    """Return what `push` does where neither repository nor tag are there yet."""
    registry = f"{config.account}.dkr.ecr.{region}.amazonaws.com"
    tagged = f"{registry}/{config.repository}:{source.revision}"
    return [
        Call("ecr", "create_repository", repository_request(config)),
        Call("ecr", "describe_images", image_request(config, source.revision)),
        Run(build_command(source, tagged)),
        Call("ecr", "get_authorization_token", {}),
        Run(["docker", "login", "--username", "AWS", "--password-stdin", registry]),
        Run(["docker", "push", tagged]),
        Call("ecr", "describe_images", image_request(config, source.revision)),
    ]


def image_request(config: AwsConfig, tag: str) -> dict[str, Any]:
    """Return DescribeImages for the image with `tag`."""
    return {"repositoryName": config.repository, "imageIds": [{"imageTag": tag}]}


def push(aws: Aws, source: Source, terminal: Terminal) -> str:
    """Build and push unless the revision is there already; return REPOSITORY@sha256:….

    Whenever it was interrupted, running it again goes on: layers that arrived are not sent again,
    and a tag only appears when all of them are there.
    """
    config = aws.config
    repository = _repository(aws, terminal)
    found = find_digest(aws, source.revision)
    if found:
        terminal.say(f"{source.revision} is in {config.repository} already: nothing to push")
        return f"{repository}@{found}"
    tagged = f"{repository}:{source.revision}"
    _run(build_command(source, tagged), "the image cannot be built")
    registry, user, password = _authorization(aws)
    with _login_folder() as login:
        docker = ["docker", "--config", str(login)]
        command = [*docker, "login", "--username", user, "--password-stdin", registry]
        _run(command, f"{registry} refuses the login", secret=password, quiet=True)
        _run([*docker, "push", tagged], "the image cannot be pushed (the same command goes on)")
    digest = find_digest(aws, source.revision)
    if digest is None:
        raise UserError(f"{tagged} was pushed, but ECR does not list it; run the command again")
    return f"{repository}@{digest}"


@contextmanager
def _login_folder() -> Iterator[Path]:
    """Yield a folder for `docker --config`, removed afterwards: the login is kept nowhere else.

    It lies in memory where there is a place for that, and only this user can read it. The user's
    Docker context counts there too, so that the engine that built the image pushes it.
    """
    user = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="alexmri-login-", dir=memory) as name:
        folder = Path(name)
        if (user / "contexts").is_dir():
            (folder / "contexts").symlink_to((user / "contexts").resolve())
        try:
            context = (read_json_object(user / "config.json") or {}).get("currentContext")
        except (OSError, UserError):
            context = None  # Docker itself says what is wrong with its file
        if context:
            (folder / "config.json").write_text(json.dumps({"currentContext": context}))
        yield folder


def _repository(aws: Aws, terminal: Terminal) -> str:
    """Return the address of the repository, made if it is not there."""
    name = {"repositoryNames": [aws.config.repository]}
    found = aws.call_or_none("ecr", "describe_repositories", name)
    if found:
        described = found["repositories"][0]
        if not str(described.get("imageTagMutability")).startswith("IMMUTABLE"):
            terminal.warn(
                f"tags in {aws.config.repository} can be moved to other images; only digests are"
                " safe to name"
            )
        return str(described["repositoryUri"])
    made = aws.call("ecr", "create_repository", repository_request(aws.config))
    terminal.say(f"made the repository {aws.config.repository}: immutable tags, scan on push")
    return str(made["repository"]["repositoryUri"])


def find_digest(aws: Aws, tag: str) -> str | None:
    """Return the digest of the image with `tag`, None where ECR has none."""
    found = aws.call_or_none("ecr", "describe_images", image_request(aws.config, tag))
    return str(found["imageDetails"][0]["imageDigest"]) if found else None


def find_image(aws: Aws, given: str | None, revision: str) -> tuple[str, str]:
    """Return an image as REPOSITORY@sha256:… and the revision it was made from.

    `given` is such a name, a tag, or None for the image of `revision`.

    Raises:
        UserError: there is no such image in ECR.
    """
    if given and "@sha256:" in given:
        return given, revision_in(aws, given)
    tag = (given or revision).rpartition(":")[2]
    repository = aws.call_or_none(
        "ecr", "describe_repositories", {"repositoryNames": [aws.config.repository]}
    )
    digest = find_digest(aws, tag) if repository else None
    if repository is None or digest is None:
        raise UserError(
            f"{aws.config.repository} has no image {tag}; `alexmri aws push` makes it, or name"
            " another with --image"
        )
    return f"{repository['repositories'][0]['repositoryUri']}@{digest}", tag


def revision_in(aws: Aws, image: str) -> str:
    """Return the git revision that tags the image REPOSITORY@sha256:…, `unknown` without one."""
    address, _, digest = image.partition("@")
    request = {
        "repositoryName": address.partition("/")[2],
        "imageIds": [{"imageDigest": digest}],
    }
    found = aws.call_or_none("ecr", "describe_images", request)
    tags = found["imageDetails"][0].get("imageTags", []) if found else []
    revisions = [tag for tag in tags if re.match(r"[0-9a-f]{40}", tag)]
    return next(iter(revisions or tags), "unknown")


def _authorization(aws: Aws) -> tuple[str, str, str]:
    answer = aws.call("ecr", "get_authorization_token", {})["authorizationData"][0]
    user, _, password = base64.b64decode(answer["authorizationToken"]).decode().partition(":")
    return str(answer["proxyEndpoint"]).removeprefix("https://"), user, password


def _run(
    command: Sequence[str], problem: str, *, secret: str | None = None, quiet: bool = False
) -> None:
    """Run a program, its output going where ours goes; `secret` goes to its standard input."""
    try:
        done = subprocess.run(  # noqa: S603
            command, input=secret, text=True, capture_output=quiet, check=False
        )
    except FileNotFoundError:
        raise UserError("there is no `docker` here; install a Docker engine") from None
    if done.returncode:
        why = (done.stderr or "").strip().splitlines()[-1:] if quiet else []
        told = f" ({why[0]})" if why and not (secret and secret in why[0]) else ""
        raise UserError(f"{problem}{told}: docker ended with {done.returncode}")
