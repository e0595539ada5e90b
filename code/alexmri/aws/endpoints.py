"""Endpoints: made, updated with a way back, asked, and removed with all that goes with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexmri.aws.configuration import AwsConfig
from alexmri.aws.endpoint_request import (
    alarm_names,
    alarm_requests,
    driver_problem,
    endpoint_config_request,
    endpoint_request,
    has_gpu,
    model_request,
    transform_request,
    update_request,
)
from alexmri.aws.follow import wait_until
from alexmri.aws.plan import Call
from alexmri.aws.session import Aws
from alexmri.aws.training import require_data
from alexmri.errors import UserError
from alexmri.terminal import Terminal

# On a configuration: the one that served before it. What `rollback` goes back to.
PREVIOUS = "alexmri:previous"
OWNER = "alexmri:endpoint"
BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
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


def deploy_plan(config: AwsConfig, endpoint: str, package: str) -> list[Call]:
    """Return what `deploy` asks for where the endpoint serves another version."""
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
    """Have `endpoint` serve the model package, made or updated; return when that was asked for.

    Everything it takes is named by what it says, so asking twice finds what is there.

    Raises:
        UserError: a driver that does not fit, or an endpoint that is changing right now.
    """
    config = aws.config
    problem = driver_problem(config)
    if problem:
        raise UserError(problem)
    found = aws.find("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    model = model_request(config, package)
    settings = endpoint_config_request(config, endpoint, model["ModelName"])
    name = settings["EndpointConfigName"]
    version = package.rpartition("/")[2]
    if found and found["EndpointConfigName"] == name and found["EndpointStatus"] != "Failed":
        terminal.say(f"{endpoint} serves version {version} already, or is about to")
        return
    _require_calm(endpoint, found)
    _ensure(aws, "model", {"ModelName": model["ModelName"]}, model, terminal)
    _ensure(aws, "endpoint_config", {"EndpointConfigName": name}, settings, terminal)
    if found:
        _remember(aws, name, previous=str(found["EndpointConfigName"]))
    for alarm in alarm_requests(config, endpoint):
        aws.call("cloudwatch", "put_metric_alarm", alarm)
    if found is None:
        request = endpoint_request(config, endpoint, name)
        aws.call("sagemaker", "create_endpoint", request)
        terminal.say(f"making {endpoint} with version {version} on {config.endpoint_instance}")
    else:
        aws.call("sagemaker", "update_endpoint", update_request(config, endpoint, name))
        terminal.say(f"updating {endpoint} to version {version}; alarms undo it")


def _ensure(
    aws: Aws, what: str, name: dict[str, str], request: dict[str, Any], terminal: Terminal
) -> None:
    if aws.find("sagemaker", f"describe_{what}", name) is None:
        aws.call("sagemaker", f"create_{what}", request)
        terminal.say(f"made the {what.replace('_', ' ')} {next(iter(name.values()))}")


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
    partition = aws.config.need("role").split(":")[1]
    return f"arn:{partition}:sagemaker:{aws.region}:{aws.config.account}:{kind}/{name.lower()}"


def _remember(aws: Aws, name: str, *, previous: str) -> None:
    """Write on a configuration which one it replaces, before it does."""
    request = {
        "ResourceArn": _arn(aws, "endpoint-config", name),
        "Tags": [{"Key": PREVIOUS, "Value": previous}],
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
    found = aws.find("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
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
    """Have the endpoint serve what it served before; return the name of that configuration.

    Raises:
        UserError: nothing served before, it is gone, or the endpoint is changing right now.
    """
    found = describe_endpoint(aws, endpoint)
    _require_calm(endpoint, found)
    current = str(found["EndpointConfigName"])
    previous = tags_of(aws, "endpoint-config", current).get(PREVIOUS)
    if previous is None:
        raise UserError(f"nothing served at {endpoint} before {current}")
    name = {"EndpointConfigName": previous}
    if aws.find("sagemaker", "describe_endpoint_config", name) is None:
        raise UserError(f"{previous}, which served before, is gone; deploy a version instead")
    # So that another rollback comes back here.
    _remember(aws, previous, previous=current)
    aws.call("sagemaker", "update_endpoint", update_request(aws.config, endpoint, previous))
    terminal.say(f"{endpoint} goes back from {current} to {previous}")
    return previous


@dataclass(frozen=True, slots=True)
class Removal:
    """Something of an endpoint: what it costs while it is there, and how it is removed."""

    words: str
    call: Call


def removals(aws: Aws, endpoint: str) -> Iterator[Removal]:
    """Yield what belongs to `endpoint`, what costs most first."""
    found = aws.find("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    if found:
        call = Call("sagemaker", "delete_endpoint", {"EndpointName": endpoint})
        yield Removal(f"endpoint {endpoint}: {_cost(aws, found)}", call)
    models = set()
    for name in _configs(aws, endpoint):
        described = aws.call("sagemaker", "describe_endpoint_config", {"EndpointConfigName": name})
        models |= {each["ModelName"] for each in described["ProductionVariants"]}
        call = Call("sagemaker", "delete_endpoint_config", {"EndpointConfigName": name})
        yield Removal(f"endpoint configuration {name}: costs nothing", call)
    for model in sorted(models):
        if aws.find("sagemaker", "describe_model", {"ModelName": model}):
            call = Call("sagemaker", "delete_model", {"ModelName": model})
            yield Removal(f"model {model}: costs nothing (the version stays registered)", call)
    names = list(alarm_names(aws.config, endpoint))
    if found or models:
        call = Call("cloudwatch", "delete_alarms", {"AlarmNames": names})
        yield Removal(f"alarms {', '.join(names)}: some cents a month", call)


def _configs(aws: Aws, endpoint: str) -> list[str]:
    request = {"NameContains": endpoint[:54]}
    listed = aws.pages("sagemaker", "list_endpoint_configs", request, "EndpointConfigs")
    names = [str(each["EndpointConfigName"]) for each in listed]
    return [name for name in names if tags_of(aws, "endpoint-config", name).get(OWNER) == endpoint]


def _cost(aws: Aws, found: dict[str, Any]) -> str:
    name = {"EndpointConfigName": found["EndpointConfigName"]}
    described = aws.find("sagemaker", "describe_endpoint_config", name) or {}
    shown = [
        f"{each.get('InitialInstanceCount', 1)} x {each.get('InstanceType', '?')}"
        for each in described.get("ProductionVariants", [])
    ]
    return f"{', '.join(shown) or 'instances'} by the hour"


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


def transform_plan(config: AwsConfig, package: str, source: str, kind: str) -> list[Call]:
    """Return what `transform` asks for."""
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
    """Ask a version about all pictures below an S3 address, once; return the name of the job."""
    model, job = (call.request for call in transform_plan(aws.config, package, source, kind))
    require_data(aws, source)
    _ensure(aws, "model", {"ModelName": model["ModelName"]}, dict(model), terminal)
    name = {"TransformJobName": job["TransformJobName"]}
    _ensure(aws, "transform_job", name, dict(job), terminal)
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
