"""Endpoints: made, and updated with a way back."""

from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, Call, ensure, wait_until
from alexmri.aws.config import AwsConfig
from alexmri.aws.requests.endpoints import (
    alarm_requests,
    endpoint_config_request,
    endpoint_request,
    model_request,
    update_request,
)
from alexmri.errors import UserError
from alexmri.terminal import Terminal

# On a configuration: the one that served before it, to which `rollback` returns.
PREVIOUS = "alexmri:previous"
# On a configuration to which a rollback returned: the one it left. A deployment empties it.
LEFT = "alexmri:rolled-back-from"
OWNER = "alexmri:endpoint"
# List prices of real-time inference in us-east-1, to show the order of magnitude.
DOLLARS_PER_HOUR = {
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
}
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
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


def deploy_calls(config: AwsConfig, endpoint: str, package: str) -> list[Call]:
    """Return the requests of `deploy` where the endpoint serves another version."""
    model = model_request(config, package)
    settings = endpoint_config_request(config, endpoint, model["ModelName"])
    name = settings["EndpointConfigName"]
    return [
        Call("sagemaker", "create_model", model),
        Call("sagemaker", "create_endpoint_config", settings),
        *(
            Call("cloudwatch", "put_metric_alarm", alarm)
            for alarm in alarm_requests(config, endpoint)
        ),
        Call("sagemaker", "create_endpoint", endpoint_request(config, endpoint, name)),
        Call("sagemaker", "update_endpoint", update_request(config, endpoint, name)),
    ]


def deploy(aws: Aws, endpoint: str, package: str, terminal: Terminal) -> None:
    """Have `endpoint` serve the model package, made or updated; return when the request was sent.

    Everything is named by a digest of its request, so a second call finds what is there.

    Raises:
        UserError: a driver that does not fit, or an endpoint that is changing right now.
    """
    config = aws.config
    found = aws.call_or_none("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    model = model_request(config, package)
    settings = endpoint_config_request(config, endpoint, model["ModelName"])
    name = settings["EndpointConfigName"]
    version = package.rpartition("/")[2]
    if found and found["EndpointConfigName"] == name and found["EndpointStatus"] != "Failed":
        terminal.say(f"{endpoint} serves version {version} already, or is about to")
        return
    if found and _pending(found) == name:
        terminal.say(f"{endpoint} is being updated to version {version} already")
        return
    _require_calm(endpoint, found)
    terminal.say(cost_line(config, endpoint))
    ensure(aws, "model", {"ModelName": model["ModelName"]}, model, terminal)
    ensure(aws, "endpoint_config", {"EndpointConfigName": name}, settings, terminal)
    if found:
        _tag(aws, name, {PREVIOUS: str(found["EndpointConfigName"]), LEFT: ""})
    for alarm in alarm_requests(config, endpoint):
        aws.call("cloudwatch", "put_metric_alarm", alarm)
    if found is None:
        request = endpoint_request(config, endpoint, name)
        aws.call("sagemaker", "create_endpoint", request)
        terminal.say(f"making {endpoint} with version {version} on {config.endpoint_instance}")
    else:
        aws.call("sagemaker", "update_endpoint", update_request(config, endpoint, name))
        terminal.say(f"updating {endpoint} to version {version}; alarms undo it")


def cost_line(config: AwsConfig, endpoint: str) -> str:
    """Return one sentence about what an endpoint costs per hour."""
    count, instance = config.endpoint_instances, config.endpoint_instance
    price = DOLLARS_PER_HOUR.get(instance)
    what = f"{endpoint} runs on {count} x {instance}"
    if price is None:
        return f"{what}, paid by the hour (aws.amazon.com/sagemaker/ai/pricing has the price)"
    return f"{what}, about ${count * price:.2f} per hour (list price of us-east-1)"


def _require_calm(endpoint: str, found: dict[str, Any] | None) -> None:
    if found and found["EndpointStatus"] == "Failed":
        raise UserError(
            f"{endpoint} has failed ({found.get('FailureReason', 'no reason')}) and takes no"
            f" update; remove it with `alexmri aws delete {endpoint}`, then deploy again"
        )
    if found and found["EndpointStatus"] in BUSY:
        raise UserError(
            f"{endpoint} is {found['EndpointStatus']} and takes no change now; run the same command"
            " again when it is InService"
        )


def _arn(aws: Aws, kind: str, name: str) -> str:
    partition = aws.config.require("role").split(":")[1]
    return f"arn:{partition}:sagemaker:{aws.region}:{aws.config.account}:{kind}/{name.lower()}"


def _pending(found: dict[str, Any]) -> str | None:
    """Return the configuration to which an update in progress leads, None without an update."""
    pending: dict[str, Any] = found.get("PendingDeploymentSummary") or {}
    return pending.get("EndpointConfigName")


def _tag(aws: Aws, name: str, tags: dict[str, str]) -> None:
    """Write tags on a configuration."""
    request = {
        "ResourceArn": _arn(aws, "endpoint-config", name),
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
    }
    aws.call("sagemaker", "add_tags", request)


def tags_of(aws: Aws, kind: str, name: str) -> dict[str, str]:
    """Return the tags of an endpoint-config (or another thing of SageMaker's)."""
    request = {"ResourceArn": _arn(aws, kind, name)}
    return {
        each["Key"]: each["Value"] for each in aws.pages("sagemaker", "list_tags", request, "Tags")
    }


def describe_endpoint(aws: Aws, endpoint: str) -> dict[str, Any]:
    """Return DescribeEndpoint; UserError where there is no such endpoint."""
    found = aws.call_or_none("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    if found is None:
        raise UserError(
            f"there is no endpoint {endpoint} in {aws.region}; `alexmri aws deploy` makes it"
        )
    return found


def wait_in_service(aws: Aws, endpoint: str, wanted: str | None, terminal: Terminal) -> None:
    """Wait until the endpoint rests.

    Raises:
        UserError: it failed, or an alarm has put back what served before.
    """

    def look() -> tuple[str, bool]:
        state = str(describe_endpoint(aws, endpoint)["EndpointStatus"])
        return f"[{state}]", state not in BUSY

    wait_until(look, terminal)
    found = describe_endpoint(aws, endpoint)
    reason = str(found.get("FailureReason") or "see /aws/sagemaker/Endpoints/" + endpoint)
    if found["EndpointStatus"] != "InService":
        raise UserError(f"{endpoint} is {found['EndpointStatus']}: {reason}")
    if wanted and found["EndpointConfigName"] != wanted:
        raise UserError(
            f"{endpoint} serves what it served before: the update was undone ({reason})"
        )


def config_name(aws: Aws, endpoint: str, package: str) -> str:
    """Return the name of the configuration by which `endpoint` serves a model package."""
    model = model_request(aws.config, package)["ModelName"]
    return str(endpoint_config_request(aws.config, endpoint, model)["EndpointConfigName"])


def rollback(aws: Aws, endpoint: str, terminal: Terminal) -> str:
    """Return the endpoint to the configuration before its last deployment; return its name.

    A second call finds the rollback, in progress or done, and starts nothing.

    Raises:
        UserError: nothing served before, it is gone, or the endpoint is changing right now.
    """
    found = describe_endpoint(aws, endpoint)
    current, pending = str(found["EndpointConfigName"]), _pending(found)
    if pending and tags_of(aws, "endpoint-config", pending).get(LEFT) == current:
        terminal.say(f"{endpoint} goes back from {current} to {pending} already")
        return pending
    _require_calm(endpoint, found)
    tags = tags_of(aws, "endpoint-config", current)
    if tags.get(LEFT):
        terminal.say(
            f"{endpoint} went back from {tags[LEFT]} to {current} already; `alexmri aws deploy"
            " VERSION` serves another version"
        )
        return current
    previous = tags.get(PREVIOUS)
    if previous is None:
        raise UserError(
            f"nothing served at {endpoint} before {current}; `alexmri aws deploy VERSION` serves"
            " another version"
        )
    name = {"EndpointConfigName": previous}
    if aws.call_or_none("sagemaker", "describe_endpoint_config", name) is None:
        raise UserError(f"{previous}, which served before, is gone; deploy a version instead")
    _tag(aws, previous, {LEFT: current})
    aws.call("sagemaker", "update_endpoint", update_request(aws.config, endpoint, previous))
    terminal.say(f"{endpoint} goes back from {current} to {previous}")
    return previous


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
