"""Training jobs: started once however often the command runs, described, and downloaded."""

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws
from alexmri.aws.names import bucket_and_key
from alexmri.contract.archive import unpack
from alexmri.errors import UserError
from alexmri.files import appearing, path_inside
from alexmri.terminal import Terminal

RUNNING = ("InProgress", "Stopping")


def start(aws: Aws, request: Mapping[str, Any], terminal: Terminal) -> str:
    """Start the job that `request` asks for, unless it runs or is done; return its name.

    After a failure or a stop the next attempt, NAME-2, goes on from the checkpoints of the first.

    Raises:
        UserError: a job with the name is another training; no data at an address.
    """
    base = str(request["TrainingJobName"])
    for attempt in itertools.count(1):
        name = base if attempt == 1 else f"{base}-{attempt}"
        found = aws.call_or_none("sagemaker", "describe_training_job", {"TrainingJobName": name})
        if found is None:
            for channel in request["InputDataConfig"]:
                require_data(aws, channel["DataSource"]["S3DataSource"]["S3Uri"])
            aws.call("sagemaker", "create_training_job", {**request, "TrainingJobName": name})
            terminal.say(f"started {name}")
            return name
        _require_same(found, request)
        status = found["TrainingJobStatus"]
        if status in RUNNING:
            terminal.say(f"{name} runs already: attaching to it")
            return name
        if status == "Completed":
            terminal.say(f"{name} is this very training, and done; another --name repeats it")
            return name
        terminal.say(f"{name} ended as {status}; the next attempt goes on from its checkpoints")
    raise AssertionError  # count never ends


def require_data(aws: Aws, address: str) -> None:
    """Raise UserError where nothing lies at an S3 address."""
    bucket, prefix = bucket_and_key(address)
    request = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": 1}
    if not aws.call("s3", "list_objects_v2", request).get("Contents"):
        raise UserError(
            f"there is nothing at {address}; `alexmri aws upload DIR` prints an address"
        )


def _require_same(found: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    image = found["AlgorithmSpecification"].get("TrainingImage")
    same = (
        image == request["AlgorithmSpecification"]["TrainingImage"]
        and (found.get("HyperParameters") or {}) == request["HyperParameters"]
        and _addresses(found) == _addresses(request)
    )
    if not same:
        raise UserError(
            f"there is a job {found['TrainingJobName']} of other settings, data or image; choose"
            " another --name"
        )


def _addresses(job: Mapping[str, Any]) -> dict[str, str]:
    return {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in job["InputDataConfig"]
    }


def describe(aws: Aws, job: str) -> dict[str, Any]:
    """Return DescribeTrainingJob; UserError where there is no such job."""
    found = aws.call_or_none("sagemaker", "describe_training_job", {"TrainingJobName": job})
    if found is None:
        raise UserError(f"there is no training job {job} in {aws.region}")
    return found


def status_lines(described: Mapping[str, Any]) -> list[str]:
    """Return what a person wants to know of a job."""
    lines = [
        f"job: {described['TrainingJobName']}",
        f"status: {described['TrainingJobStatus']} ({described.get('SecondaryStatus', '-')})",
    ]
    if described.get("FailureReason"):
        lines.append(f"reason: {described['FailureReason']}")
    lines.append(f"image: {described['AlgorithmSpecification'].get('TrainingImage', '-')}")
    lines += [f"{name}: {place}" for name, place in _addresses(described).items()]
    seconds, paid = described.get("TrainingTimeInSeconds"), described.get("BillableTimeInSeconds")
    if seconds and paid is not None:
        lines.append(f"time: {seconds} s, paid: {paid} s ({1 - paid / seconds:.0%} saved)")
    for metric in described.get("FinalMetricDataList", []):
        lines.append(f"{metric['MetricName']}: {metric['Value']:g}")
    if described["TrainingJobStatus"] == "Completed":
        lines.append(f"model: {described['ModelArtifacts']['S3ModelArtifacts']}")
    return lines


def results_address(described: Mapping[str, Any], name: str) -> str:
    """Return the address of model.tar.gz or output.tar.gz of a job."""
    path = str(described["OutputDataConfig"]["S3OutputPath"]).rstrip("/")
    return f"{path}/{described['TrainingJobName']}/output/{name}"


def fetch(aws: Aws, address: str, path: Path) -> bool:
    """Make `path` from an object, whole or not at all; False where there is no such object."""
    bucket, key = bucket_and_key(address)
    if aws.call_or_none("s3", "head_object", {"Bucket": bucket, "Key": key}) is None:
        return False
    with (
        appearing(path) as temporary,
        temporary.open("wb") as file,
        aws.translate_errors("s3", "get_object"),
    ):
        aws.client("s3").download_fileobj(bucket, key, file)
    return True


def download(aws: Aws, job: str, out: Path, terminal: Terminal) -> None:
    """Fetch model and report of `job` into `out`; what is there already is not fetched again.

    Raises:
        UserError: the job has left neither, `out` is another job's, or a file would be written
            outside of `out`.
    """
    described = describe(aws, job)
    for other in out.glob("*-output.tar.gz"):
        if other.name != f"{job}-output.tar.gz":
            raise UserError(
                f"{out} holds results of another job ({other.name}); choose another --out"
            )
    found = False
    for archive, folder in (("output.tar.gz", out), ("model.tar.gz", out / "model")):
        packed = path_inside(out, f"{job}-{archive}")
        if packed.is_file() or fetch(aws, results_address(described, archive), packed):
            found = True
            _unpack_anew(packed, folder)
            terminal.say(f"{archive}: {folder}")
    if not found:
        raise UserError(
            f"{job} has left no results yet; it is {described['TrainingJobStatus']}"
            f" (`alexmri aws status {job}`)"
        )


def _unpack_anew(packed: Path, folder: Path) -> None:
    """Unpack beside `folder`, then move: a file is whole or not there, and no old one is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
        new = Path(temporary)
        unpack(packed, new)
        for path in sorted(new.rglob("*")):
            place = path_inside(folder, path.relative_to(new).as_posix())
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)
