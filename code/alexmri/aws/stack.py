"""The CloudFormation stack: bucket, repository and roles, created or updated from stack.yaml."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, AwsError, wait_until
from alexmri.aws.config import AwsConfig
from alexmri.errors import UserError
from alexmri.files import appearing
from alexmri.terminal import Terminal

# Output of the stack -> key of alexmri.toml.
OUTPUTS = {
    "BucketName": "bucket",
    "RepositoryName": "repository",
    "TrainingRoleArn": "role",
    "EndpointRoleArn": "endpoint_role",
    "PipelineRoleArn": "pipeline_role",
}
NO_UPDATES = "No updates are to be performed"
READY = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")


def stack_request(config: AwsConfig, *, update: bool) -> dict[str, Any]:
    """Return CreateStack, or UpdateStack, which keeps the bucket: another one would be empty.

    Raises:
        UserError: kms_key is no ARN, without which no role can be allowed to use it.
    """
    if config.kms_key and not re.match(r"arn:[^:]+:kms:[^:]*:\d+:key/", config.kms_key):
        raise UserError(
            f"kms_key is {config.kms_key}, but the roles need the ARN of a key; write"
            " arn:aws:kms:REGION:ACCOUNT:key/ID"
        )
    values = {
        "Name": config.name,
        "LowerName": config.name.lower(),
        "Prefix": config.prefix,
        "RepositoryName": config.repository,
        "BucketName": config.bucket or "",
        "KmsKeyArn": config.kms_key or "",
        "UseVpc": "true" if config.subnets else "false",
        "WandbSecretArn": config.wandb_secret or "",
    }
    return {
        "StackName": config.name,
        "TemplateBody": files("alexmri.aws").joinpath("stack.yaml").read_text(encoding="utf-8"),
        "Parameters": [
            {"ParameterKey": key, "UsePreviousValue": True}
            if update and key == "BucketName"
            else {"ParameterKey": key, "ParameterValue": value}
            for key, value in values.items()
        ],
        "Capabilities": ["CAPABILITY_IAM"],
        "Tags": config.tag_list(),
    }


def deploy_stack(aws: Aws, terminal: Terminal) -> dict[str, str]:
    """Create or update the stack, wait for it, and return its outputs as keys of alexmri.toml.

    A second call changes nothing, and one after Ctrl-C waits again.

    Raises:
        UserError: the stack failed; the message has the reason of the first failure.
    """
    name, changing = aws.config.name, True
    found = describe_stack(aws)
    if found is None:
        terminal.say(f"creating the stack {name}")
        request = stack_request(aws.config, update=False)
        aws.call("cloudformation", "create_stack", request)
    elif found["StackStatus"].endswith("_IN_PROGRESS"):
        terminal.say(f"the stack {name} is changing already: waiting for it")
    else:
        _require_ready(aws, found)
        request = stack_request(aws.config, update=True)
        try:
            aws.call("cloudformation", "update_stack", request)
            terminal.say(f"updating the stack {name}")
        except AwsError as error:
            if NO_UPDATES not in str(error):
                raise
            changing = False
            terminal.say(f"the stack {name} is up to date")

    def look() -> tuple[str, bool]:
        state = str((describe_stack(aws) or {}).get("StackStatus", "DELETE_COMPLETE"))
        return f"[{state}]", not state.endswith("_IN_PROGRESS")

    last = wait_until(look, terminal).strip("[]")
    if changing and last == "UPDATE_ROLLBACK_COMPLETE":
        raise UserError(f"the update of the stack {name} was undone: {_reason(aws)}")
    described = describe_stack(aws) or {}
    _require_ready(aws, described)
    values = {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs", ())}
    return {"region": aws.region, **{key: values[output] for output, key in OUTPUTS.items()}}


def describe_stack(aws: Aws) -> dict[str, Any] | None:
    """Return DescribeStacks for our stack, None where there is none."""
    name = {"StackName": aws.config.name}
    found = aws.call_or_none("cloudformation", "describe_stacks", name)
    stacks = (found or {}).get("Stacks") or [None]
    described: dict[str, Any] | None = stacks[0]
    return described


def _require_ready(aws: Aws, described: Mapping[str, Any]) -> None:
    state, name = described.get("StackStatus", "gone"), aws.config.name
    if state not in READY:
        raise UserError(
            f"the stack {name} is {state} ({_reason(aws)}); remove it with `aws cloudformation"
            f" delete-stack --stack-name {name}`, then run `alexmri aws setup` again"
        )


def _reason(aws: Aws) -> str:
    """Return why the stack failed: the newest failure of a resource that is not a consequence."""
    request = {"StackName": aws.config.name}
    for event in aws.pages("cloudformation", "describe_stack_events", request, "StackEvents"):
        reason = str(event.get("ResourceStatusReason", ""))
        if str(event.get("ResourceStatus", "")).endswith("_FAILED") and "cancelled" not in reason:
            return f"{event.get('LogicalResourceId')}: {reason}"
    return "CloudFormation gives no reason"


def write_keys(path: Path, values: Mapping[str, str]) -> bool:
    """Set keys of a TOML file, whose other lines stay; return whether anything changed."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = text.splitlines()
    # Keys behind the first [table] belong to it.
    top = next((n for n, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    for key, value in values.items():
        line = f"{key} = {json.dumps(value)}"
        places = [n for n in range(top) if re.match(rf"\s*{key}\s*=", lines[n])]
        if places:
            lines[places[0]] = line
        else:
            lines.insert(top, line)
            top += 1
    new = "\n".join(lines) + "\n"
    if new == text:
        return False
    with appearing(path) as temporary:
        temporary.write_text(new, encoding="utf-8")
    return True
