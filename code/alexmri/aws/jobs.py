"""Training and transform jobs: started once however often the command runs, watched, downloaded."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, Call, ensure, pause, wait_until
from alexmri.aws.config import AwsConfig
from alexmri.aws.requests.endpoints import has_gpu, model_request, transform_request
from alexmri.contract.archive import unpack
from alexmri.errors import UserError
from alexmri.files import appearing, path_inside, temporary_folder
from alexmri.settings import Layer, resolve
from alexmri.terminal import Terminal

RUNNING = ("InProgress", "Stopping")
TRAINING_LOGS = "/aws/sagemaker/TrainingJobs"
# The last lines reach CloudWatch some seconds after the end of a job: so many polls without a line.
QUIET_POLLS = 4
EPOCH = re.compile(r"^epoch=(\d+); train_loss=")


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
            terminal.say(
                f"{name} has finished with these settings; pass another --name to train again"
            )
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
        and addresses(found) == addresses(request)
    )
    if not same:
        raise UserError(
            f"there is a job {found['TrainingJobName']} of other settings, data or image; choose"
            " another --name"
        )


def addresses(job: Mapping[str, Any]) -> dict[str, str]:
    """Return channel -> S3 address of a job."""
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
    lines += [f"{name}: {place}" for name, place in addresses(described).items()]
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
    with temporary_folder(".unpacking-", folder) as new:
        unpack(packed, new)
        for path in sorted(new.rglob("*")):
            place = path_inside(folder, path.relative_to(new).as_posix())
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)


@dataclass(slots=True)
class LogReader:
    """The lines of a job's log in CloudWatch, each once."""

    aws: Aws
    job: str
    group: str = TRAINING_LOGS
    _tokens: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Yield what was added since the last time."""
        for stream in sorted(self._streams()):
            yield from self._stream(stream)

    def _streams(self) -> Iterator[str]:
        request = {"logGroupName": self.group, "logStreamNamePrefix": f"{self.job}/"}
        while True:
            # The group is made with the first line of the first job.
            found = self.aws.call_or_none("logs", "describe_log_streams", request) or {}
            for stream in found.get("logStreams", ()):
                yield str(stream["logStreamName"])
            if not found.get("nextToken"):
                return
            request["nextToken"] = found["nextToken"]

    def _stream(self, stream: str) -> Iterator[str]:
        while True:
            request = {
                "logGroupName": self.group,
                "logStreamName": stream,
                "startFromHead": True,
            }
            token = self._tokens.get(stream)
            answer = self.aws.call(
                "logs", "get_log_events", request | ({"nextToken": token} if token else {})
            )
            for event in answer["events"]:
                yield from str(event["message"]).splitlines()
            self._tokens[stream] = answer["nextForwardToken"]
            # At the end CloudWatch gives back the token it was given. A page may be empty before.
            if self._tokens[stream] == token:
                return


def follow(aws: Aws, job: str, terminal: Terminal) -> dict[str, Any]:
    """Show states and log of `job` until it ends; return its last description."""
    last: dict[str, Any] = {}
    epochs = _epochs(aws, job, terminal, last)
    total = next(epochs)
    for _ in terminal.track(epochs, total, "epochs"):
        pass
    return last


def _epochs(aws: Aws, job: str, terminal: Terminal, last: dict[str, Any]) -> Iterator[int]:
    """Yield how many epochs there are, then once for every epoch that is done."""
    log, told, done, total, quiet = LogReader(aws, job), "", 0, 0, 0
    while True:
        last.update(describe(aws, job))
        running = last["TrainingJobStatus"] in RUNNING
        if not total:
            total = _epochs_of(last.get("HyperParameters") or {})
            yield total
        state = _state(last)
        if state != told:
            terminal.say(state)
            told = state
        quiet += 1
        for line in log.lines():
            quiet = 0
            terminal.say(line)
            found = EPOCH.match(line)
            # After an interruption the log begins again at some epoch.
            while found and done < int(found.group(1)):
                done += 1
                yield done
        if running:
            quiet = 0
        elif quiet >= QUIET_POLLS:
            return
        pause()


def _epochs_of(hyperparameters: dict[str, str]) -> int:
    """Return how many epochs a job has; 1 where its settings are not ours."""
    try:
        return resolve([Layer("job", hyperparameters)]).settings.epochs
    except UserError:
        return 1


def _state(described: dict[str, Any]) -> str:
    transitions = described.get("SecondaryStatusTransitions") or [{}]
    message = str(transitions[-1].get("StatusMessage") or "")
    state = described.get("SecondaryStatus") or described["TrainingJobStatus"]
    return f"[{state}] {message}".rstrip()


def require_completed(described: dict[str, Any]) -> None:
    """Raise UserError unless a job ended well; a stop that a user requested is well."""
    if described["TrainingJobStatus"] == "Failed":
        raise UserError(
            f"{described['TrainingJobName']} failed: {described.get('FailureReason', 'no reason')}"
        )


def transform_calls(
    config: AwsConfig, package: str, source: str, kind: str, specification: str | None = None
) -> list[Call]:
    """Return the requests of `transform`."""
    model = model_request(config, package, specification)
    job = transform_request(config, model=model["ModelName"], source=source, content_type=kind)
    return [
        Call("sagemaker", "create_model", model),
        Call("sagemaker", "create_transform_job", job),
    ]


def transform(
    aws: Aws,
    package: str,
    source: str,
    kind: str,
    terminal: Terminal,
    specification: str | None = None,
) -> str:
    """Start one batch transform of all images below an S3 address; return the name of the job."""
    calls = transform_calls(aws.config, package, source, kind, specification)
    model, job = (call.request for call in calls)
    require_data(aws, source)
    if has_gpu(aws.config.transform_instance):
        terminal.warn(f"a batch transform on a GPU with {aws.config.cuda} is not tested yet")
    ensure(aws, "model", {"ModelName": model["ModelName"]}, dict(model), terminal)
    name = {"TransformJobName": job["TransformJobName"]}
    ensure(aws, "transform_job", name, dict(job), terminal)
    return str(job["TransformJobName"])


def wait_transformed(aws: Aws, job: str, terminal: Terminal) -> str:
    """Wait for a transform; return the address of the answers. UserError where it failed."""

    def look() -> tuple[str, bool]:
        found = aws.call("sagemaker", "describe_transform_job", {"TransformJobName": job})
        state = str(found["TransformJobStatus"])
        return f"[{state}]", state not in ("InProgress", "Stopping")

    state = wait_until(look, terminal)
    found = aws.call("sagemaker", "describe_transform_job", {"TransformJobName": job})
    if state != "[Completed]":
        raise UserError(f"{job} is {state.strip('[]')}: {found.get('FailureReason', 'no reason')}")
    return str(found["TransformOutput"]["S3OutputPath"])


def bucket_and_key(address: str) -> tuple[str, str]:
    """Return the two parts of s3://BUCKET/KEY."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key
