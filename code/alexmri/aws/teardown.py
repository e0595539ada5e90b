"""Teardown of an endpoint: its resources, their cost, and the request that removes each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alexmri.aws.client import Aws
from alexmri.aws.dry_run import Call
from alexmri.aws.endpoint_request import alarm_names
from alexmri.aws.endpoints import OWNER, tags_of


@dataclass(frozen=True, slots=True)
class Resource:
    """Something of an endpoint: what it costs while it is there, and how it is removed."""

    words: str
    call: Call


def teardown(aws: Aws, endpoint: str) -> Iterator[Resource]:
    """Yield what belongs to `endpoint`, what costs most first."""
    found = aws.call_or_none("sagemaker", "describe_endpoint", {"EndpointName": endpoint})
    if found:
        call = Call("sagemaker", "delete_endpoint", {"EndpointName": endpoint})
        yield Resource(f"endpoint {endpoint}: {_cost(aws, found)}", call)
    models = set()
    for name in _configs(aws, endpoint):
        described = aws.call("sagemaker", "describe_endpoint_config", {"EndpointConfigName": name})
        models |= {each["ModelName"] for each in described["ProductionVariants"]}
        call = Call("sagemaker", "delete_endpoint_config", {"EndpointConfigName": name})
        yield Resource(f"endpoint configuration {name}: costs nothing", call)
    for model in sorted(models):
        if aws.call_or_none("sagemaker", "describe_model", {"ModelName": model}):
            call = Call("sagemaker", "delete_model", {"ModelName": model})
            yield Resource(f"model {model}: costs nothing (the version stays registered)", call)
    names = list(alarm_names(aws.config, endpoint))
    if found or models:
        call = Call("cloudwatch", "delete_alarms", {"AlarmNames": names})
        yield Resource(f"alarms {', '.join(names)}: some cents a month", call)


def _configs(aws: Aws, endpoint: str) -> list[str]:
    request = {"NameContains": endpoint[:54]}
    listed = aws.pages("sagemaker", "list_endpoint_configs", request, "EndpointConfigs")
    names = [str(each["EndpointConfigName"]) for each in listed]
    return [name for name in names if tags_of(aws, "endpoint-config", name).get(OWNER) == endpoint]


def _cost(aws: Aws, found: dict[str, Any]) -> str:
    name = {"EndpointConfigName": found["EndpointConfigName"]}
    described = aws.call_or_none("sagemaker", "describe_endpoint_config", name) or {}
    shown = [
        f"{each.get('InitialInstanceCount', 1)} x {each.get('InstanceType', '?')}"
        for each in described.get("ProductionVariants", [])
    ]
    return f"{', '.join(shown) or 'instances'} by the hour"
