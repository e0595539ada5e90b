"""The pipeline in SageMaker: made or updated, started once, watched."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from alexmri.aws.client import Aws, Call
from alexmri.aws.config import AwsConfig, digest_of
from alexmri.aws.registry import ensure_group
from alexmri.aws.requests.registry import group_request
from alexmri.errors import UserError
from alexmri.terminal import Terminal


def upsert_request(config: AwsConfig, definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return CreatePipeline; without token and tags it is UpdatePipeline."""
    text = json.dumps(definition, indent=1)
    token = hashlib.sha256(text.encode()).hexdigest()
    return {
        "PipelineName": config.name,
        "PipelineDefinition": text,
        "RoleArn": config.role_for("pipeline"),
        "ClientRequestToken": token[:64],
        "Tags": config.tag_list(),
    }


def upsert_calls(config: AwsConfig, definition: Mapping[str, Any]) -> list[Call]:
    """Return what `upsert` does where neither group nor pipeline are there yet."""
    request = upsert_request(config, definition)
    # As an object, for whoever reads it; SageMaker is sent its text.
    shown = {**request, "PipelineDefinition": definition}
    return [
        Call("sagemaker", "create_model_package_group", group_request(config)),
        Call("sagemaker", "describe_pipeline", {"PipelineName": config.name}),
        Call("sagemaker", "create_pipeline", shown),
    ]


def upsert(aws: Aws, definition: Mapping[str, Any], terminal: Terminal) -> None:
    """Make or update the pipeline; nothing is done where it says the same already."""
    ensure_group(aws, terminal)
    request = upsert_request(aws.config, definition)
    name = {"PipelineName": aws.config.name}
    found = aws.call_or_none("sagemaker", "describe_pipeline", name)
    if found is None:
        aws.call("sagemaker", "create_pipeline", request)
        terminal.say(f"made the pipeline {aws.config.name}")
        return
    same_role = found["RoleArn"] == request["RoleArn"]
    if same_role and json.loads(found["PipelineDefinition"]) == definition:
        terminal.say(f"the pipeline {aws.config.name} is up to date")
        return
    kept = ("PipelineName", "PipelineDefinition", "RoleArn")
    aws.call("sagemaker", "update_pipeline", {key: request[key] for key in kept})
    terminal.say(f"updated the pipeline {aws.config.name}")


def stored_definition(aws: Aws) -> dict[str, Any]:
    """Return the definition that SageMaker has; UserError where it has none."""
    found = aws.call_or_none("sagemaker", "describe_pipeline", {"PipelineName": aws.config.name})
    if found is None:
        raise UserError(
            f"there is no pipeline {aws.config.name}; `alexmri aws pipeline upsert` makes it"
        )
    definition: dict[str, Any] = json.loads(found["PipelineDefinition"])
    return definition


def start_request(
    config: AwsConfig, parameters: Mapping[str, str], after: str | None
) -> dict[str, Any]:
    """Return StartPipelineExecution. `after` is the execution before: sent twice, it starts one."""
    token = {"name": config.name, "parameters": dict(parameters), "after": after}
    return {
        "PipelineName": config.name,
        "PipelineParameters": [
            {"Name": name, "Value": value} for name, value in parameters.items()
        ],
        "ClientRequestToken": digest_of(token, 64),
    }


def start(aws: Aws, parameters: Mapping[str, str], terminal: Terminal) -> str:
    """Start an execution unless one runs; return its ARN."""
    known = [each["Name"] for each in stored_definition(aws)["Parameters"]]
    for name in parameters:
        if name not in known:
            raise UserError(f"the pipeline has no parameter {name}; it has {', '.join(known)}")
    last = latest(aws)
    if last and last["PipelineExecutionStatus"] == "Executing":
        arn = str(last["PipelineExecutionArn"])
        terminal.say(f"{arn.rpartition('/')[2]} runs already: no other is started beside it")
        return arn
    after = str(last["PipelineExecutionArn"]) if last else None
    request = start_request(aws.config, parameters, after)
    answer = aws.call("sagemaker", "start_pipeline_execution", request)
    return str(answer["PipelineExecutionArn"])


def latest(aws: Aws) -> dict[str, Any] | None:
    """Return the newest execution, None where there is none."""
    request = {
        "PipelineName": aws.config.name,
        "SortBy": "CreationTime",
        "SortOrder": "Descending",
        "MaxResults": 1,
    }
    found = aws.call_or_none("sagemaker", "list_pipeline_executions", request) or {}
    summaries = found.get("PipelineExecutionSummaries") or [None]
    newest: dict[str, Any] | None = summaries[0]
    return newest


def status(aws: Aws, execution: str | None) -> tuple[str, dict[str, str], list[str]]:
    """Return how an execution (default: the newest) is, how each of its steps is, and lines.

    Raises:
        UserError: nothing was executed yet.
    """
    if execution is None:
        newest = latest(aws)
        if newest is None:
            raise UserError("nothing was executed yet; `alexmri aws pipeline start` does it")
        execution = str(newest["PipelineExecutionArn"])
    name = {"PipelineExecutionArn": execution}
    described = aws.call("sagemaker", "describe_pipeline_execution", name)
    steps = list(
        aws.pages("sagemaker", "list_pipeline_execution_steps", name, "PipelineExecutionSteps")
    )
    state = str(described["PipelineExecutionStatus"])
    lines = [f"execution: {execution}", f"status: {state}"]
    if described.get("FailureReason"):
        lines.append(f"reason: {described['FailureReason']}")
    for step in reversed(steps):
        reason = f": {step['FailureReason']}" if step.get("FailureReason") else ""
        cached = " (from the cache)" if step.get("CacheHitResult") else ""
        lines.append(f"{step['StepName']}: {step['StepStatus']}{cached}{reason}")
    return state, {step["StepName"]: step["StepStatus"] for step in steps}, lines


def step_lines(definition: Mapping[str, Any], states: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each step, with its state where it has one, and one for each parameter."""
    yield from _steps(definition["Steps"], states, "")
    yield ""
    for each in definition["Parameters"]:
        yield f"{each['Name']} = {each['DefaultValue']}"


def _steps(steps: list[dict[str, Any]], states: Mapping[str, str], when: str) -> Iterator[str]:
    for step in steps:
        arguments, kind, name = step["Arguments"], step["Type"], step["Name"]
        if kind == "Processing":
            what = " ".join(arguments["AppSpecification"]["ContainerEntrypoint"][:2])
        elif kind == "Training":
            what = f"train on {arguments['ResourceConfig']['InstanceType']}"
        elif kind == "Condition":
            what = f"{len(arguments['Conditions'])} conditions"
        elif kind == "RegisterModel":
            what = f"a version of {arguments['ModelPackageGroupName']}"
        else:
            what = "end with the reason"
        yield f"{name}: {what}{when}" + (f" [{states[name]}]" if name in states else "")
        if kind == "Condition":
            yield from _steps(arguments["IfSteps"], states, f", if {name} holds")
            yield from _steps(arguments["ElseSteps"], states, f", if {name} does not hold")
