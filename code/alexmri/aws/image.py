"""The image in ECR: built from a revision, pushed once under its tag, known by its digest."""

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, AwsError, Call, Run
from alexmri.aws.config import DEFAULT_CUDA, AwsConfig
from alexmri.errors import UserError
from alexmri.files import read_json_object, sha256_of, temporary_folder
from alexmri.terminal import Terminal

# Of linux/amd64, and one manifest of Docker's own type: SageMaker refuses OCI manifests, and any
# index. `type=docker` is what --load stands for.
BUILD = (
    *("--platform", "linux/amd64", "--provenance=false", "--sbom=false"),
    *("--output", "type=docker,oci-mediatypes=false"),
)
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# An image in ECR: account, region, repository.
ECR_ADDRESS = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/([^@:]+)[@:]")

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
        raise UserError(
            "`git` is not installed, and its revision names the image; install it"
        ) from None
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{folder} is not a git repository with a commit ({error.stderr.strip()}); images are"
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


def tag_of(config: AwsConfig, revision: str) -> str:
    """Return the tag of an image: its revision, and its CUDA where that is not the default."""
    return revision if config.cuda == DEFAULT_CUDA else f"{revision}-{config.cuda}"


def cuda_in(tag: str) -> str | None:
    """Return for which CUDA the image with `tag` was built, None where it is no tag of ours."""
    found = re.fullmatch(r"[0-9a-f]{40}(?:-dirty-[0-9a-f]{8})?(?:-(cu\d+|cpu))?", tag)
    return (found.group(1) or DEFAULT_CUDA) if found else None


def without_variant(tag: str) -> str:
    """Return the revision in a tag of ours, and any other tag as it is."""
    return re.sub(r"(?<=[0-9a-f])-(cu\d+|cpu)$", "", tag)


def build_command(config: AwsConfig, source: Source, tagged: str) -> list[str]:
    """Return the command that makes the image named `tagged`.

    Raises:
        UserError: a build argument chooses the CUDA that `cuda` stands for.
    """
    if source.image:
        return ["docker", "tag", source.image, tagged]
    if any(each.startswith("TORCH_CUDA=") for each in source.build_arguments):
        raise UserError(
            "--build-arg TORCH_CUDA=… leaves no trace in the image's name; set cuda in"
            " alexmri.toml, or pass `alexmri aws --cuda VALUE push` or `push --cpu`"
        )
    cuda = (f"TORCH_CUDA={config.cuda}",) if config.cuda != DEFAULT_CUDA else ()
    arguments = (f"REVISION={source.revision}", *cuda, *source.build_arguments)
    given = [part for argument in arguments for part in ("--build-arg", argument)]
    return ["docker", "buildx", "build", *BUILD, *given, "--tag", tagged, str(source.folder)]


def push_calls(config: AwsConfig, source: Source, region: str) -> list[Call | Run]:
    """Return what `push` does where neither repository nor tag are there yet."""
    registry = f"{config.account}.dkr.ecr.{region}.amazonaws.com"
    tag = tag_of(config, source.revision)
    tagged = f"{registry}/{config.repository}:{tag}"
    return [
        Call("ecr", "create_repository", repository_request(config)),
        Call("ecr", "describe_images", image_request(config, tag)),
        Run(build_command(config, source, tagged)),
        Call("ecr", "get_authorization_token", {}),
        Run(["docker", "login", "--username", "AWS", "--password-stdin", registry]),
        Run(["docker", "push", tagged]),
        Call("ecr", "describe_images", image_request(config, tag)),
    ]


def image_request(config: AwsConfig, tag: str) -> dict[str, Any]:
    """Return DescribeImages for the image with `tag`."""
    return {"repositoryName": config.repository, "imageIds": [{"imageTag": tag}]}


def push(aws: Aws, source: Source, terminal: Terminal) -> str:
    """Build and push unless the revision is there already; return REPOSITORY@sha256:….

    Whenever it was interrupted, running it again goes on: layers that arrived are not sent again,
    and a tag only appears when all of them are there.

    Raises:
        UserError: no Docker, or a registry that refuses; an image that SageMaker would refuse.
    """
    config = aws.config
    tag = tag_of(config, source.revision)
    # What is wrong with it is said before the repository is made.
    build_command(config, source, tag)
    repository = _repository(aws, terminal)
    found = find_digest(aws, tag)
    if found:
        terminal.say(f"{tag} is in {config.repository} already: nothing to push")
        return f"{repository}@{found}"
    tagged = f"{repository}:{tag}"
    _run(build_command(config, source, tagged), "the image cannot be built")
    registry, user, password = _authorization(aws)
    with _login_folder() as login:
        docker = ["docker", "--config", str(login)]
        command = [*docker, "login", "--username", user, "--password-stdin", registry]
        _run(command, f"{registry} refuses the login", secret=password, quiet=True)
        _run([*docker, "push", tagged], "the image cannot be pushed (the same command goes on)")
    digest = find_digest(aws, tag)
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
    with temporary_folder("alexmri-login-", memory) as folder:
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
    """Return the digest of the image with `tag`, None where ECR has none.

    Raises:
        UserError: SageMaker would refuse the image.
    """
    found = aws.call_or_none("ecr", "describe_images", image_request(aws.config, tag))
    if not found:
        return None
    details = found["imageDetails"][0]
    _require_docker_manifest(details, f"{aws.config.repository}:{tag}")
    return str(details["imageDigest"])


def _require_docker_manifest(details: Mapping[str, Any], image: str) -> None:
    found = details.get("imageManifestMediaType") or MANIFEST
    if found != MANIFEST:
        repository, _, tag = image.rpartition("/")[2].partition(":")
        remove = (
            f"; remove it with `aws ecr batch-delete-image --repository-name {repository}"
            f" --image-ids imageTag={tag}` first"
            if tag
            else ""
        )
        raise UserError(
            f"{image} has a manifest of type {found}, and SageMaker takes only {MANIFEST};"
            " build it with `docker buildx build --provenance=false --sbom=false --output"
            f" type=docker,oci-mediatypes=false` and push that{remove}"
        )


def wanted_image(config: AwsConfig, given: str | None) -> str:
    """Return `given`, or the tag of the image of the revision that is checked out here.

    Raises:
        UserError: no revision tells what is in the image.
    """
    return given or tag_of(config, revision_of(Path(), instead=OTHERWISE))


def planned_image(wanted: str) -> tuple[str, str]:
    """Return what `find_image` would, without a request: what only ECR knows in angle brackets."""
    return (wanted if "@" in wanted else f"<digest of the image {wanted}>"), wanted


def find_image(aws: Aws, wanted: str) -> tuple[str, str]:
    """Return the image `wanted`, such a name or a tag, as REPOSITORY@sha256:…, and its tag.

    Raises:
        UserError: there is no such image in ECR, or SageMaker would refuse it.
    """
    if "@sha256:" in wanted:
        details = _details(aws, wanted)
        _require_docker_manifest(details, wanted)
        return wanted, _tag_in(details)
    tag = wanted.rpartition(":")[2]
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


def find_cpu_image(aws: Aws, image: str, tag: str) -> str | None:
    """Return the image without CUDA of the revision of `image` (tagged `tag`), None without one."""
    repository = image.partition("@")[0]
    if not repository.endswith(f"/{aws.config.repository}"):
        return None
    digest = find_digest(aws, f"{without_variant(tag)}-cpu")
    return f"{repository}@{digest}" if digest else None


def revision_in(aws: Aws, image: str) -> str:
    """Return the git revision that tags the image REPOSITORY@sha256:…, `unknown` without one."""
    return _tag_in(_details(aws, image))


def _tag_in(details: Mapping[str, Any]) -> str:
    tags = details.get("imageTags", [])
    revisions = [tag for tag in tags if re.match(r"[0-9a-f]{40}", tag)]
    return next(iter(revisions or tags), "unknown")


def _details(aws: Aws, image: str) -> dict[str, Any]:
    """Return what ECR says of REPOSITORY@sha256:…; nothing where it does not say anything to us."""
    place = ECR_ADDRESS.match(image)
    if place is None or place.group(2) != aws.region:
        return {}
    request = {
        "registryId": place.group(1),
        "repositoryName": place.group(3),
        "imageIds": [{"imageDigest": image.partition("@")[2]}],
    }
    try:
        found = aws.call_or_none("ecr", "describe_images", request)
    except AwsError:
        # Jobs may use a repository of another account that we may not describe.
        if place.group(1) != aws.config.account:
            return {}
        raise
    return dict(found["imageDetails"][0]) if found else {}


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
        raise UserError("`docker` is not installed; install a Docker engine") from None
    if done.returncode:
        why = (done.stderr or "").strip().splitlines()[-1:] if quiet else []
        told = f" ({why[0]})" if why and not (secret and secret in why[0]) else ""
        raise UserError(f"{problem}{told}: docker ended with {done.returncode}")
