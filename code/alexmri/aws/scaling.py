"""Scaling of an endpoint: the wish is a tag of the endpoint, so it outlives every update."""

import re
from dataclasses import dataclass
from typing import Any

from alexmri.aws.client import Aws, Call
from alexmri.aws.config import AwsConfig
from alexmri.aws.requests.endpoints import ASYNCHRONOUS
from alexmri.aws.requests.scaling import (
    backlog_alarm_request,
    first_instance_request,
    register_request,
    target_of,
    tracking_request,
)
from alexmri.terminal import Terminal

# On an endpoint: how few and how many instances it may have.
INSTANCES = "alexmri:instances"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How few and how many instances an endpoint may have."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"


# Without a wish: an asynchronous endpoint has no instance while nothing waits.
DEFAULT_BOUNDS = {ASYNCHRONOUS: Bounds(0, 1)}


def bounds_in(tags: dict[str, str]) -> Bounds | None:
    """Return what the tags of an endpoint wish, None where it does not scale."""
    found = re.fullmatch(r"(\d+) to (\d+)", tags.get(INSTANCES, ""))
    return Bounds(int(found.group(1)), int(found.group(2))) if found else None


def target(aws: Aws, endpoint: str) -> dict[str, Any] | None:
    """Return the scalable target of an endpoint, None where there is none."""
    wanted = target_of(endpoint)
    request = {**wanted, "ResourceIds": [wanted["ResourceId"]]}
    del request["ResourceId"]
    found = aws.pages(
        "application-autoscaling", "describe_scalable_targets", request, "ScalableTargets"
    )
    return next(found, None)


def release(aws: Aws, endpoint: str) -> None:
    """Take an endpoint out of scaling: AWS refuses other instances for one that scales.

    Its policies go with the target.
    """
    if target(aws, endpoint):
        aws.call("application-autoscaling", "deregister_scalable_target", target_of(endpoint))


def scaling_calls(config: AwsConfig, endpoint: str, kind: str, bounds: Bounds) -> list[Call]:
    """Return the requests of `apply`; ARNs stand in angle brackets."""
    service = "application-autoscaling"
    request = register_request(endpoint, bounds.low, bounds.high)
    calls = [
        Call(service, "register_scalable_target", request),
        Call(service, "put_scaling_policy", tracking_request(config, endpoint, kind)),
    ]
    if kind == ASYNCHRONOUS:
        alarm = backlog_alarm_request(config, endpoint, "<ARN of the second policy>")
        policy = first_instance_request(config, endpoint)
        calls.append(Call(service, "put_scaling_policy", policy))
        calls.append(Call("cloudwatch", "put_metric_alarm", alarm))
    return calls


def apply(aws: Aws, endpoint: str, kind: str, bounds: Bounds, terminal: Terminal) -> None:
    """Have an endpoint that serves scale within `bounds`; the same twice is the same once."""
    arn = ""
    for call in scaling_calls(aws.config, endpoint, kind, bounds):
        request = dict(call.request)
        if "AlarmActions" in request:
            request["AlarmActions"] = [arn]
        arn = str(aws.call(call.service, call.method, request).get("PolicyARN", ""))
    terminal.say(f"{endpoint} scales by itself: {bounds} instances")
