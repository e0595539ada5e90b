"""The requests by which an endpoint gets more and fewer instances (Application Auto Scaling)."""

from typing import Any

from alexmri.aws.config import AwsConfig
from alexmri.aws.requests.endpoints import ASYNCHRONOUS, VARIANT

# Requests that wait for each instance of an asynchronous endpoint, as in Amazon's own guide.
BACKLOG = 5.0


def target_of(endpoint: str) -> dict[str, str]:
    """Return by which keys Application Auto Scaling knows the instances of an endpoint."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def register_request(endpoint: str, low: int, high: int) -> dict[str, Any]:
    """Return RegisterScalableTarget: from `low` to `high` instances."""
    return {**target_of(endpoint), "MinCapacity": low, "MaxCapacity": high}


def tracking_request(config: AwsConfig, endpoint: str, kind: str) -> dict[str, Any]:
    """Return PutScalingPolicy: as many instances as requests, or as those that wait, need."""
    tracking: dict[str, Any] = {"ScaleInCooldown": 300, "ScaleOutCooldown": 60}
    if kind == ASYNCHRONOUS:
        tracking["TargetValue"] = BACKLOG
        tracking["CustomizedMetricSpecification"] = {
            "Namespace": "AWS/SageMaker",
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
            "Statistic": "Average",
        }
    else:
        tracking["TargetValue"] = config.scaling_requests_per_minute
        metric = "SageMakerVariantInvocationsPerInstance"
        tracking["PredefinedMetricSpecification"] = {"PredefinedMetricType": metric}
    return {
        **target_of(endpoint),
        "PolicyName": f"{config.name}-{endpoint}-tracking",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }


def first_instance_request(config: AwsConfig, endpoint: str) -> dict[str, Any]:
    """Return PutScalingPolicy: one instance more. Without any the tracked metric says nothing."""
    return {
        **target_of(endpoint),
        "PolicyName": f"{config.name}-{endpoint}-first",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": 300,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    }


def backlog_alarm_name(config: AwsConfig, endpoint: str) -> str:
    """Return the name of the alarm that starts the first instance of an asynchronous endpoint."""
    return f"{config.name}-{endpoint}-backlog"


def backlog_alarm_request(config: AwsConfig, endpoint: str, policy: str) -> dict[str, Any]:
    """Return PutMetricAlarm: requests wait and there is no instance, so do what `policy` says."""
    return {
        "AlarmName": backlog_alarm_name(config, endpoint),
        "AlarmDescription": f"requests wait for {endpoint}, which has no instance; starts one",
        "Namespace": "AWS/SageMaker",
        "MetricName": "HasBacklogWithoutCapacity",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "DatapointsToAlarm": 2,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [policy],
        "Tags": config.tag_list(endpoint=endpoint),
    }
