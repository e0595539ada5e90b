"""Amazon SageMaker on this machine, by plain `docker run`: what the platform does to a container.

A job and the platform share a command, files below /opt/ml, environment variables, signals and an
exit code, and nothing else. The docstrings here say what the platform promises; the tests named
test_promises_*.py say what our image promises in return. Where SageMaker leaves something open,
it is played in the way that is hardest for the container. This module plays training jobs;
hosting.py and processing.py play the rest.
"""

import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .checkpoint_sync import CheckpointSync
from .container import Container, network, new_name, settings, volumes
from .docker_helpers import call
from .opt_ml import ML, Channel, configuration, give, write_documents

REGION, ACCOUNT = "eu-west-1", "123456789012"
# Seconds from SIGTERM to SIGKILL.
SECONDS_TO_STOP = 120
# So many characters of the failure file are shown.
REASON_CHARACTERS = 1024


@dataclass(frozen=True)
class JobEnd:
    """What DescribeTrainingJob or DescribeProcessingJob says of a job that is over, and its log."""

    status: Literal["Completed", "Failed", "Stopped"]
    reason: str
    codes: Sequence[int]
    log: str
    seconds_to_stop: float = 0.0


@dataclass(kw_only=True)
class TrainingJob:
    """CreateTrainingJob: starts when entered, as `with TrainingJob(…) as job`.

    Every host runs `docker run IMAGE train` as root, without a terminal and, being isolated,
    without a network; several hosts reach one another by name, and nobody else, the `slow` ones
    only after `resolve`. Of /opt/ml there
    are input/config, with files of root's that all may read, input/data, model, output and, with
    `checkpoints`, the checkpoint folder. There is no output/data.

    Args:
        folder: stands for the disks of the hosts and for the bucket.
        entrypoint, arguments: ContainerEntrypoint replaces the image's entry point, and no `train`
            follows; ContainerArguments replace `train`.
        hosts: their names, which the platform sorts by letters: algo-1, algo-10, algo-2.
        slow: hosts whose names do not resolve at first.
        checkpoints: CheckpointConfig's S3Uri. What is there is copied to `checkpoint_path` before
            the start, and then see `CheckpointSync`.
        missing: configuration files that other platforms do not write.
        user: who runs it and owns the mounts; on SageMaker always root.
        options: of `docker run`, for the limits of a machine.
    """

    image: str
    folder: Path
    channels: Mapping[str, Channel]
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    arguments: Sequence[str] = ()
    hosts: Sequence[str] = ("algo-1",)
    slow: Sequence[str] = ()
    checkpoints: Path | None = None
    checkpoint_path: str = f"{ML}/checkpoints"
    missing: Sequence[str] = ()
    user: int = 0
    options: Sequence[str] = ()

    def __enter__(self) -> "TrainingJob":
        self.name = new_name()
        self.hosts = sorted(self.hosts)
        self.stopped_at: float | None = None
        self.containers: list[Container] = []
        mounts = {host: self._lay_out(host) for host in self.hosts}
        with ExitStack() as started:
            if len(self.hosts) > 1:
                started.enter_context(network(self.name))
            # They start in any order and see each other late; here the first of them comes last.
            for host in reversed(self.hosts):
                words = [*self._identity(host), *mounts[host], *self.options, *self._command()]
                container = Container(f"{self.name}-{host}", words)
                self.containers.insert(0, started.enter_context(container))
            self._started = started.pop_all()
        self.sync = None
        if self.checkpoints:
            disks = [self.disk(host) / "checkpoints" for host in self.hosts]
            self.sync = CheckpointSync(disks, self.checkpoints, self.containers)
        return self

    def __exit__(self, *error: object) -> None:
        self._started.close()

    def disk(self, host: str = "algo-1") -> Path:
        """Return the folder that a host sees as /opt/ml."""
        return self.folder / host

    def host(self, name: str) -> Container:
        return self.containers[list(self.hosts).index(name)]

    def resolve(self, host: str) -> None:
        """Let the others find a slow host by its name from now on."""
        container = self.host(host).name
        call("docker", "network", "disconnect", self.name, container)
        call("docker", "network", "connect", "--alias", host, self.name, container)

    @property
    def first(self) -> Container:
        return self.containers[0]

    def stop(self) -> None:
        """StopTrainingJob, or the end of MaxRuntimeInSeconds: SIGTERM, 120 s, SIGKILL."""
        self.stopped_at = time.time()
        for container in self.containers:
            container.stop(SECONDS_TO_STOP)

    def wait(self) -> JobEnd:
        """Wait until every host has ended, and say how the job ended.

        Stopped after `stop`, Completed where all exit codes are 0, else Failed, for the reason that
        the first 1,024 characters of a host's failure file give. All else in that file is ignored,
        and all of it when the job did not fail.
        """
        ends = [container.wait() for container in self.containers]
        if self.sync:
            self.sync.join()
        codes = [end.code for end in ends]
        log = "".join(container.log() for container in self.containers)
        if self.stopped_at:
            seconds = max(end.time for end in ends) - self.stopped_at
            return JobEnd("Stopped", "", codes, log, seconds)
        if not any(codes):
            return JobEnd("Completed", "", codes, log)
        files = [self.disk(host) / "output" / "failure" for host in self.hosts]
        reasons = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
        reason = next((text for text in reasons if text), "AlgorithmError: , exit code: 1")
        return JobEnd("Failed", reason[:REASON_CHARACTERS], codes, log)

    def artifact(self, kind: Literal["model", "output"] = "model") -> Path:
        """Return model.tar.gz or output.tar.gz, which are uploaded after Completed and Stopped.

        They hold /opt/ml/model and /opt/ml/output/data of all hosts; links are not accepted.
        """
        packed = self.folder / f"{kind}.tar.gz"
        if packed.is_file():
            return packed
        with tarfile.open(packed, "w:gz", compresslevel=1) as tar:
            for host in self.hosts:
                tree = self.disk(host) / ("model" if kind == "model" else "output/data")
                for path in sorted(tree.rglob("*")):
                    assert not path.is_symlink(), f"{path} is a link"
                    name = str(path.relative_to(tree))
                    assert path.is_dir() or name not in tar.getnames(), f"two hosts have {name}"
                    tar.add(path, name, recursive=False)
        return packed

    def _lay_out(self, host: str) -> list[str]:
        """Write what a host finds below /opt/ml; return its mounts."""
        disk, place = self.disk(host), self.hosts.index(host)
        local = self.checkpoint_path if self.checkpoints else None
        documents = configuration(host, self.hosts, self.hyperparameters, self.channels, local)
        kept = {name: said for name, said in documents.items() if name not in self.missing}
        write_documents(disk / "input" / "config", kept)
        written = {disk / "model": f"{ML}/model", disk / "output": f"{ML}/output"}
        for path in (disk / "input" / "data", *written):
            path.mkdir()
        if self.checkpoints:
            shutil.copytree(self.checkpoints, disk / "checkpoints")
            written[disk / "checkpoints"] = self.checkpoint_path
        mounts = [
            word
            for name, channel in self.channels.items()
            for word in channel.deliver(name, disk / "input" / "data", place, len(self.hosts))
        ]
        give([disk / "input"], 0, self.image)
        give(list(written), self.user, self.image)
        return [*volumes({disk / "input": f"{ML}/input", **written}), *mounts]

    def _identity(self, host: str) -> list[str]:
        """Return a host's network, user and environment as options of docker.

        A host's name is the one in resourceconfig.json: the system's own may be "aws" everywhere.
        """
        alone = len(self.hosts) == 1
        reach = ["none"] if alone else [self.name]
        if not alone and host not in self.slow:
            reach += ["--network-alias", host]
        user = ["--user", f"{self.user}:{self.user}"] if self.user else []
        variables = {**job_variables("TRAINING", self.name), **self.environment}
        return ["--hostname", "aws", "--network", *reach, *user, *settings(variables)]

    def _command(self) -> list[str]:
        if self.entrypoint:
            first, *rest = self.entrypoint
            return ["--entrypoint", first, self.image, *rest, *self.arguments]
        return [self.image, *(self.arguments or ["train"])]


def job_variables(kind: str, name: str) -> dict[str, str]:
    """Return the variables that the platform sets for a job; nothing named SM_* is among them."""
    arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind.lower()}-job/{name}"
    return {f"{kind}_JOB_NAME": name, f"{kind}_JOB_ARN": arn, "AWS_REGION": REGION}
