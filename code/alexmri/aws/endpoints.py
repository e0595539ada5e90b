"""Endpoints: made, and updated with a way back."""

from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, Call, ensure, wait_until
from alexmri.aws.config import AwsConfig
from alexmri.aws.prices import PAGE, hourly_usd
from alexmri.aws.requests.endpoints import (
    SERVERLESS,
    Hosting,
    alarm_requests,
    endpoint_config_request,
    endpoint_request,
    kind_of,
    model_request,
    update_request,
)
from alexmri.aws.scaling import (
    DEFAULT_BOUNDS,
    INSTANCES,
    Bounds,
    apply,
    bounds_in,
    release,
    scaling_calls,
)
from alexmri.aws.upload import encryption
from alexmri.errors import UserError
from alexmri.files import sha256_of
from alexmri.terminal import Terminal

# On a configuration: the one that served before it, to which `rollback` returns.
PREVIOUS = "alexmri:previous"
# On a configuration to which a rollback returned: the one it left. A deployment empties it.
LEFT = "alexmri:rolled-back-from"
OWNER = "alexmri:endpoint"
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


def deploy_calls(
    config: AwsConfig, endpoint: str, package: str, hosting: Hosting, bounds: Bounds | None
) -> list[Call]:
    """Return the requests of `deploy` where the endpoint serves another version.

    Whether the version has a specification for CPUs only the registry knows.
    """
    model = model_request(config, package)
    settings = endpoint_config_request(config, endpoint, model["ModelName"], hosting)
    name, kind = settings["EndpointConfigName"], hosting.kind
    bounds = bounds or DEFAULT_BOUNDS.get(kind)
    made = endpoint_request(config, endpoint, name, str(bounds) if bounds else None)
    update = update_request(config, endpoint, name, kind=kind, scaled=bounds is not None)
    calls = [
        Call("sagemaker", "create_model", model),
        Call("sagemaker", "create_endpoint_config", settings),
        *(
            Call("cloudwatch", "put_metric_alarm", alarm)
            for alarm in alarm_requests(config, endpoint)
            if kind != SERVERLESS
        ),
        Call("sagemaker", "create_endpoint", made),
        Call("sagemaker", "update_endpoint", update),
    ]
    return calls + (scaling_calls(config, endpoint, kind, bounds) if bounds else [])


def deploy(
    aws: Aws,
    endpoint: str,
    package: str,
    hosting: Hosting,
    bounds: Bounds | None,
    terminal: Terminal,
    specification: str | None = None,
) -> str:
    """Have `endpoint` serve the model package; return its configuration when the request was sent.

    Everything is named by a digest of its request, so a second call finds what is there. Without
    `bounds` it keeps those it has. `settle` waits, and has it scale.

    Raises:
        UserError: an endpoint of another kind, or one that is changing right now.
    """
    config = aws.config
    found = aws.call_or_none("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    model = model_request(config, package, specification)
    settings = endpoint_config_request(config, endpoint, model["ModelName"], hosting)
    name = str(settings["EndpointConfigName"])
    version = package.rpartition("/")[2]
    if found and found["EndpointStatus"] != "Failed":
        _require_kind(aws, found, hosting.kind)
        serves = found["EndpointConfigName"] == name
        if serves or _pending(found) == name:
            if bounds:
                _tag(aws, "endpoint", endpoint, {INSTANCES: str(bounds)})
            state = "serves" if serves else "is being updated to"
            terminal.say(f"{endpoint} {state} version {version} already, or is about to")
            return name
    _require_calm(endpoint, found)
    kept = _wish(aws, endpoint) if found else None
    wish = bounds or kept or DEFAULT_BOUNDS.get(hosting.kind)
    terminal.say(cost_line(aws, endpoint, hosting, wish))
    ensure(aws, "model", {"ModelName": model["ModelName"]}, model, terminal)
    ensure(aws, "endpoint_config", {"EndpointConfigName": name}, settings, terminal)
    if found:
        previous = str(found["EndpointConfigName"])
        _tag(aws, "endpoint-config", name, {PREVIOUS: previous, LEFT: ""})
        if wish and wish != kept:
            _tag(aws, "endpoint", endpoint, {INSTANCES: str(wish)})
    if hosting.kind != SERVERLESS:  # which has no updates with a way back
        for alarm in alarm_requests(config, endpoint):
            aws.call("cloudwatch", "put_metric_alarm", alarm)
    if found:
        _update(aws, endpoint, name, hosting.kind, wish)
        undo = "" if hosting.kind == SERVERLESS else "; alarms undo it"
        terminal.say(f"updating {endpoint} to version {version}{undo}")
    else:
        request = endpoint_request(config, endpoint, name, str(wish) if wish else None)
        aws.call("sagemaker", "create_endpoint", request)
        terminal.say(f"making {endpoint} with version {version}")
    return name


def _update(aws: Aws, endpoint: str, name: str, kind: str, wish: Bounds | None) -> None:
    if wish:
        release(aws, endpoint)
    request = update_request(aws.config, endpoint, name, kind=kind, scaled=wish is not None)
    aws.call("sagemaker", "update_endpoint", request)


def _require_kind(aws: Aws, found: dict[str, Any], kind: str) -> None:
    name = {"EndpointConfigName": found["EndpointConfigName"]}
    described = aws.call_or_none("sagemaker", "describe_endpoint_config", name)
    if described and kind_of(described) != kind:
        endpoint = found["EndpointName"]
        raise UserError(
            f"{endpoint} is {kind_of(described)}, and an endpoint does not become {kind}; choose"
            f" another --endpoint, or remove it with `alexmri aws delete {endpoint}` first"
        )


def cost_line(aws: Aws, endpoint: str, hosting: Hosting, bounds: Bounds | None) -> str:
    """Return one sentence about what an endpoint costs."""
    if hosting.kind == SERVERLESS:
        return (
            f"{endpoint} has {hosting.memory_mb} MB and is paid for the time that requests take,"
            f" and for nothing else ({PAGE} has the price); it has no GPU, and its image must be"
            " smaller than 10 GB"
        )
    instance = aws.config.endpoint_instance
    usd = hourly_usd(aws, instance)
    price = f"paid by the hour ({PAGE} has the price)" if usd is None else f"{usd:.3f} USD an hour"
    return (
        f"{endpoint} runs on {bounds or aws.config.endpoint_instances} x {instance}, each {price},"
        " with requests or without"
    )


def _require_calm(endpoint: str, found: dict[str, Any] | None) -> None:
    if found and found["EndpointStatus"] == "Failed":
        raise UserError(
            f"{endpoint} has failed ({found.get('FailureReason', 'no reason')}) and cannot be"
            f" updated; remove it with `alexmri aws delete {endpoint}`, then deploy again"
        )
    if found and found["EndpointStatus"] in BUSY:
        raise UserError(
            f"{endpoint} is {found['EndpointStatus']} and cannot be changed now; run the same"
            " command again when it is InService"
        )


def _arn(aws: Aws, kind: str, name: str) -> str:
    partition = aws.config.require("role").split(":")[1]
    return f"arn:{partition}:sagemaker:{aws.region}:{aws.config.account}:{kind}/{name.lower()}"


def _pending(found: dict[str, Any]) -> str | None:
    """Return the configuration to which an update in progress leads, None without an update."""
    pending: dict[str, Any] = found.get("PendingDeploymentSummary") or {}
    return pending.get("EndpointConfigName")


def _wish(aws: Aws, endpoint: str) -> Bounds | None:
    return bounds_in(tags_of(aws, "endpoint", endpoint))


def _tag(aws: Aws, kind: str, name: str, tags: dict[str, str]) -> None:
    """Write tags on an endpoint or an endpoint-config."""
    request = {
        "ResourceArn": _arn(aws, kind, name),
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


def settle(aws: Aws, endpoint: str, wanted: str, terminal: Terminal) -> None:
    """Wait until the endpoint rests, and have it scale where that is wished.

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
    wish = _wish(aws, endpoint)
    if wish:  # also where an alarm has put back what served before
        name = {"EndpointConfigName": found["EndpointConfigName"]}
        described = aws.call("sagemaker", "describe_endpoint_config", name)
        apply(aws, endpoint, kind_of(described), wish, terminal)
    if found["EndpointConfigName"] != wanted:
        raise UserError(
            f"{endpoint} serves what it served before: the update was undone ({reason})"
        )


def rests(aws: Aws, endpoint: str, name: str) -> bool:
    """Tell whether the endpoint serves by the configuration `name` and nothing is changing."""
    found = describe_endpoint(aws, endpoint)
    return bool(found["EndpointStatus"] == "InService" and found["EndpointConfigName"] == name)


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
    described = aws.call_or_none("sagemaker", "describe_endpoint_config", name)
    if described is None:
        raise UserError(f"{previous}, which served before, is gone; deploy a version instead")
    _tag(aws, "endpoint-config", previous, {LEFT: current})
    _update(aws, endpoint, previous, kind_of(described), _wish(aws, endpoint))
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
            f"{file} has a type that the endpoint does not take; name it {', '.join(CONTENT_TYPES)}"
        )
    return {"EndpointName": endpoint, "ContentType": kind, "Accept": "application/json"}


def invoke_async_requests(
    config: AwsConfig, endpoint: str, file: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return PutObject, without bytes, and InvokeEndpointAsync for one file.

    The object is named by the content, so the same file is there once.
    """
    request = invoke_request(endpoint, file)
    key = f"{config.prefix}/async/{endpoint}/requests/{sha256_of(file)[:32]}{file.suffix.lower()}"
    place = {"Bucket": config.require("bucket"), "Key": key}
    return {**place, **encryption(config)}, {
        **request,
        "InputLocation": f"s3://{place['Bucket']}/{key}",
    }


def invoke_async(aws: Aws, endpoint: str, file: Path) -> dict[str, str]:
    """Have an asynchronous endpoint work on one file; return where its answer will be in S3."""
    put, request = invoke_async_requests(aws.config, endpoint, file)
    aws.call("s3", "put_object", {**put, "Body": file.read_bytes()})
    answer = aws.call("sagemaker-runtime", "invoke_endpoint_async", request)
    found = {"answer_at": str(answer["OutputLocation"])}
    failure = answer.get("FailureLocation")
    return found | ({"failure_at": str(failure)} if failure else {})


def invoke(aws: Aws, endpoint: str, file: Path) -> str:
    """Return the endpoint's answer to one file, as text."""
    request = {**invoke_request(endpoint, file), "Body": file.read_bytes()}
    answer = aws.call("sagemaker-runtime", "invoke_endpoint", request)
    return str(answer["Body"].read().decode("utf-8", "replace"))
