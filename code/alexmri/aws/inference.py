"""Inference: files through an endpoint, or all images below an S3 address through a version."""

from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws
from alexmri.aws.config import AwsConfig
from alexmri.aws.dry_run import Call
from alexmri.aws.endpoint_request import has_gpu, model_request, transform_request
from alexmri.aws.endpoints import ensure
from alexmri.aws.jobs import require_data
from alexmri.aws.watch import wait_until
from alexmri.errors import UserError
from alexmri.terminal import Terminal

CONTENT_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".bmp": "image/bmp",
    ".webp": "image/webp",
    ".json": "application/json",
}


def invoke_request(endpoint: str, file: Path) -> dict[str, Any]:
    """Return InvokeEndpoint for one file, without its bytes.

    Raises:
        UserError: the name tells of no kind of file that the model takes.
    """
    kind = CONTENT_TYPES.get(file.suffix.lower())
    if kind is None:
        raise UserError(
            f"{file} is of no kind the endpoint takes; name it {', '.join(CONTENT_TYPES)}"
        )
    return {"EndpointName": endpoint, "ContentType": kind, "Accept": "application/json"}


def invoke(aws: Aws, endpoint: str, file: Path) -> str:
    """Return the endpoint's answer to one file, as text."""
    request = {**invoke_request(endpoint, file), "Body": file.read_bytes()}
    answer = aws.call("sagemaker-runtime", "invoke_endpoint", request)
    return str(answer["Body"].read().decode("utf-8", "replace"))


def transform_calls(config: AwsConfig, package: str, source: str, kind: str) -> list[Call]:
    """Return the requests of `transform`."""
    instance = config.transform_instance
    if has_gpu(instance):
        raise UserError(
            f"transform_instance {instance} has a GPU, whose driver in a batch transform is 535 or"
            f" older: too old for CUDA {config.cuda}; take one without, such as ml.m5.xlarge"
        )
    model = model_request(config, package)
    job = transform_request(config, model=model["ModelName"], source=source, content_type=kind)
    return [
        Call("sagemaker", "create_model", model),
        Call("sagemaker", "create_transform_job", job),
    ]


def transform(aws: Aws, package: str, source: str, kind: str, terminal: Terminal) -> str:
    """Start one batch transform of all images below an S3 address; return the name of the job."""
    model, job = (call.request for call in transform_calls(aws.config, package, source, kind))
    require_data(aws, source)
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
