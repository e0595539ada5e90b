"""What SageMaker puts below /opt/ml before a training starts: configuration files and channels."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .docker_helpers import call

ML = "/opt/ml"
INSTANCE_TYPE = "ml.m5.large"
# Nobody documents these; they lie beside the documented files, whoever reads them.
UNDOCUMENTED = (
    *("init-config", "debughookconfig", "profilerconfig", "metric-definition-regex"),
    *("trainingjobconfig", "upstreamoutputdataconfig"),
)


@dataclass(frozen=True)
class Channel:
    """A data set in S3, and how it gets to /opt/ml/input/data/NAME.

    File: all objects are copied there before the start, and NAME-manifest lies beside them.
    FastFile: the same path is a read-only mount; whether inputdataconfig.json then says "FastFile"
    or "File" differs between SageMaker's documents. Pipe: there is no folder, but a FIFO NAME_0 for
    the first epoch; nobody writes to it here, so that a container that opens it hangs.
    FullyReplicated gives each host all objects. ShardedByS3Key deals them out, and nobody says how:
    here in the order of their keys, the last host getting twice as many as any other, so that a
    host may lack a class.
    """

    source: Path
    mode: Literal["File", "FastFile", "Pipe"] = "File"
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] = "FullyReplicated"
    record_wrapper: Literal["None", "RecordIO"] = "None"

    def description(self) -> dict[str, str]:
        """Return the channel's entry in inputdataconfig.json."""
        return {
            "TrainingInputMode": self.mode,
            "S3DistributionType": self.distribution,
            "RecordWrapperType": self.record_wrapper,
        }

    def deliver(self, name: str, data: Path, host: int, hosts: int) -> list[str]:
        """Bring it to `data`, a host's /opt/ml/input/data; return mounts for docker."""
        if self.mode == "Pipe":
            os.mkfifo(data / f"{name}_0")
            return []
        if self.mode == "FastFile":
            (data / name).mkdir()
            return ["--volume", f"{self.source}:{ML}/input/data/{name}:ro"]
        objects = sorted(path for path in self.source.rglob("*") if path.is_file())
        if self.distribution == "ShardedByS3Key":
            share = len(objects) // (hosts + 1)
            objects = objects[host * share : (host + 1) * share if host + 1 < hosts else None]
        for path in objects:
            copy = data / name / path.relative_to(self.source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (data / f"{name}-manifest").write_text("[]", encoding="utf-8")
        return []


def configuration(
    host: str,
    hosts: Sequence[str],
    hyperparameters: Mapping[str, str],
    channels: Mapping[str, Channel],
    checkpoint_path: str | None,
) -> dict[str, Any]:
    """Return the documents of /opt/ml/input/config by file name.

    `hosts` are sorted by letters: algo-1, algo-10, algo-2. Hyperparameters are strings on both
    sides; what is in the strings depends on the client. checkpointconfig.json is there where the
    job has a CheckpointConfig.
    """
    group = {
        "instance_group_name": "homogeneousCluster",
        "instance_type": INSTANCE_TYPE,
        "hosts": list(hosts),
    }
    documents: dict[str, Any] = {name: {"nobody": "documents this"} for name in UNDOCUMENTED} | {
        "hyperparameters": dict(hyperparameters),
        "inputdataconfig": {name: channel.description() for name, channel in channels.items()},
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": INSTANCE_TYPE,
            "current_group_name": "homogeneousCluster",
            "hosts": list(hosts),
            "instance_groups": [group],
            "network_interface_name": "eth0",
            "topology": None,
        },
    }
    if checkpoint_path:
        documents["checkpointconfig"] = {"LocalPath": checkpoint_path}
    return {f"{name}.json": content for name, content in documents.items()}


def write_documents(folder: Path, documents: Mapping[str, Any]) -> None:
    """Write JSON files that everybody may read and their owner may write."""
    folder.mkdir(parents=True)
    for name, content in documents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        (folder / name).chmod(0o644)


def give(folders: Sequence[Path], user: int, image: str) -> None:
    """Make everything in `folders` belong to `user`, with docker's help where we may not."""
    if os.getuid() == user:
        return
    mounts = [word for path in folders for word in ("--volume", f"{path}:/given{path}")]
    command = ["--recursive", f"{user}:{user}", "/given"]
    call("docker", "run", "--rm", *mounts, "--entrypoint", "chown", image, *command)
