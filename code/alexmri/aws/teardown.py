"""Teardown of an endpoint: its resources, their cost, and the request that removes each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alexmri.aws.client import Aws, Call
from alexmri.aws.endpoints import OWNER, tags_of
from alexmri.aws.requests.endpoints import SERVERLESS, alarm_names, kind_of
from alexmri.aws.requests.scaling import backlog_alarm_name, target_of
from alexmri.aws.scaling import Bounds, target


@dataclass(frozen=True, slots=True)
class Resource:
    """Something of an endpoint: what it costs while it is there, and how it is removed."""

    words: str
    call: Call


def teardown(aws: Aws, endpoint: str) -> Iterator[Resource]:
    """Yield what belongs to `endpoint` alone, in the order of removal.

    The configurations come last: they name the models, so an interrupted removal can go on. What
    another endpoint or its configurations use is left out.
    """
    found = aws.call_or_none("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    own, others = _configs(aws, endpoint)
    scaled = target(aws, endpoint)
    if scaled:
        bounds = Bounds(scaled["MinCapacity"], scaled["MaxCapacity"])
        call = Call("application-autoscaling", "deregister_scalable_target", target_of(endpoint))
        yield Resource(f"scaling of {endpoint}: {bounds} instances, with its policies", call)
    if found:
        call = Call("sagemaker", "delete_endpoint", {"EndpointName": endpoint})
        yield Resource(f"endpoint {endpoint}: {_cost(aws, found)}", call)
    names = _alarms(aws, endpoint)
    if names:
        call = Call("cloudwatch", "delete_alarms", {"AlarmNames": names})
        yield Resource(f"alarms {', '.join(names)}: some cents a month", call)
    for model in sorted(_models(aws, own) - _models(aws, others)):
        if aws.call_or_none("sagemaker", "describe_model", {"ModelName": model}):
            call = Call("sagemaker", "delete_model", {"ModelName": model})
            yield Resource(f"model {model}: costs nothing (the version stays registered)", call)
    for name in own:
        call = Call("sagemaker", "delete_endpoint_config", {"EndpointConfigName": name})
        yield Resource(f"endpoint configuration {name}: costs nothing", call)


def _alarms(aws: Aws, endpoint: str) -> list[str]:
    names = [*alarm_names(aws.config, endpoint), backlog_alarm_name(aws.config, endpoint)]
    found = aws.pages("cloudwatch", "describe_alarms", {"AlarmNames": names}, "MetricAlarms")
    return [str(each["AlarmName"]) for each in found]


def _configs(aws: Aws, endpoint: str) -> tuple[list[str], list[str]]:
    """Return the configurations of `endpoint` alone, and all others."""
    listed = aws.pages("sagemaker", "list_endpoint_configs", {}, "EndpointConfigs")
    names = [str(each["EndpointConfigName"]) for each in listed]
    mine = [
        name
        for name in names
        if name.startswith(endpoint[:54])
        and tags_of(aws, "endpoint-config", name).get(OWNER) == endpoint
    ]
    # Somebody may have made another endpoint of the same configuration.
    served = {
        aws.call("sagemaker", "describe_endpoint", {"EndpointName": each["EndpointName"]})[
            "EndpointConfigName"
        ]
        for each in aws.pages("sagemaker", "list_endpoints", {}, "Endpoints")
        if each["EndpointName"] != endpoint
    }
    own = [name for name in mine if name not in served]
    return own, [name for name in names if name not in own]


def _models(aws: Aws, configs: list[str]) -> set[str]:
    models = set()
    for name in configs:
        request = {"EndpointConfigName": name}
        # Somebody may have removed it since it was listed.
        described = aws.call_or_none("sagemaker", "describe_endpoint_config", request) or {}
        models |= {each["ModelName"] for each in described.get("ProductionVariants", ())}
    return models


def _cost(aws: Aws, found: dict[str, Any]) -> str:
    name = {"EndpointConfigName": found["EndpointConfigName"]}
    described = aws.call_or_none("sagemaker", "describe_endpoint_config", name) or {}
    if described and kind_of(described) == SERVERLESS:
        return "serverless, paid by the request"
    shown = [
        f"{each.get('InitialInstanceCount', 1)} x {each.get('InstanceType', '?')}"
        for each in described.get("ProductionVariants", [])
    ]
    return f"{', '.join(shown) or 'instances'} by the hour"
