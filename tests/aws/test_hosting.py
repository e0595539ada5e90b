"""Endpoints that scale, that have no instances, and that answer by S3."""

import json
from pathlib import Path
from typing import Any

import pytest

from alexmri.aws.client import Aws

from .conftest import BUCKET, Cloud, Run, client, error_of, keys, updates

TOPIC = "arn:aws:sns:us-east-1:123456789012:alexmri-answers"


def target() -> dict[str, Any] | None:
    """Return what Application Auto Scaling knows of the endpoint alexmri."""
    found = client("application-autoscaling").describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=["endpoint/alexmri/variant/AllTraffic"]
    )
    return next(iter(found["ScalableTargets"]), None)


def policies() -> dict[str, dict[str, Any]]:
    found = client("application-autoscaling").describe_scaling_policies(
        ServiceNamespace="sagemaker", ResourceId="endpoint/alexmri/variant/AllTraffic"
    )
    return {each["PolicyName"]: each for each in found["ScalingPolicies"]}


def alarms() -> dict[str, dict[str, Any]]:
    found = client("cloudwatch").describe_alarms()["MetricAlarms"]
    return {each["AlarmName"]: each for each in found if "TargetTracking" not in each["AlarmName"]}


def bounds() -> tuple[int, int] | None:
    found = target()
    return (found["MinCapacity"], found["MaxCapacity"]) if found else None


# --- more and fewer instances


def test_an_endpoint_scales_with_its_requests(cloud: Cloud, versions: None, run: Run) -> None:
    command = ("--scaling-requests-per-minute", "600", "deploy", "--max-instances", "4")
    for _ in range(2):
        done = run(*command)
        assert bounds() == (1, 4)
        (policy,) = policies().values()
        assert policy["PolicyType"] == "TargetTrackingScaling"
        tracking = policy["TargetTrackingScalingPolicyConfiguration"]
        assert tracking["TargetValue"] == 600
        assert tracking["PredefinedMetricSpecification"] == {
            "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"
        }
        assert "alexmri scales by itself: 1 to 4 instances" in done.stdout
    assert len(cloud.sent("CreateEndpoint")) == 1
    assert set(alarms()) == {"alexmri-alexmri-5xx", "alexmri-alexmri-latency"}


def test_an_update_takes_the_endpoint_out_of_scaling_and_puts_it_back(
    cloud: Cloud, versions: None, run: Run
) -> None:
    """AWS refuses another instance type for an endpoint that scales."""
    updates(cloud)
    run("deploy", "1", "--min-instances", "2", "--max-instances", "4")
    first = cloud.sent("CreateEndpointConfig")[0]["EndpointConfigName"]
    scaled: list[bool] = []
    cloud.before = lambda t: scaled.append(target() is not None) if t == "UpdateEndpoint" else None
    for command in (("deploy", "2", "--gpu"), ("rollback",)):
        run(*command)
        # The wish stays where nobody speaks of it.
        assert bounds() == (2, 4)
    assert scaled == [False, False]
    update, back = cloud.sent("UpdateEndpoint")
    assert back["EndpointConfigName"] == first
    assert update["RetainAllVariantProperties"] is True
    run("deploy", "1", "--max-instances", "8")
    assert bounds() == (1, 8)
    assert len(cloud.sent("UpdateEndpoint")) == 2


def test_scaling_that_was_cut_off_comes_with_the_same_command(
    cloud: Cloud, versions: None, run: Run
) -> None:
    updates(cloud)
    run("deploy", "1", "--max-instances", "4")
    cloud.refuse("RegisterScalableTarget", "AccessDeniedException")
    told = error_of(run("deploy", "2", ok=False))
    assert "do not allow application-autoscaling:RegisterScalableTarget" in told
    assert target() is None
    cloud.answers.pop("RegisterScalableTarget")
    assert "serves version 2 already" in run("deploy", "2").stdout
    assert bounds() == (1, 4)
    assert len(cloud.sent("UpdateEndpoint")) == 1


def test_where_alarms_undid_an_update_the_endpoint_still_scales(
    cloud: Cloud, versions: None, run: Run
) -> None:
    run("deploy", "1", "--max-instances", "4")
    arn = "arn:aws:sagemaker:us-east-1:1:endpoint/alexmri"
    cloud.answer("UpdateEndpoint", {"EndpointArn": arn})
    assert "the update was undone" in error_of(run("deploy", "2", ok=False))
    assert bounds() == (1, 4)


def test_delete_removes_scaling_and_all_alarms(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1", "--async", "--max-instances", "4")
    run("deploy", "1", "--endpoint", "alexmri-b", "--max-instances", "2")
    done = run("delete", "alexmri", "--yes")
    assert "scaling of alexmri: 0 to 4 instances, with its policies" in done.stdout
    assert target() is None
    left = client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    (other,) = left["ScalableTargets"]
    assert other["ResourceId"] == "endpoint/alexmri-b/variant/AllTraffic"
    assert set(alarms()) == {"alexmri-alexmri-b-5xx", "alexmri-alexmri-b-latency"}
    assert (
        run("delete", "alexmri", "--yes").stdout == "alexmri does not exist, and nothing"
        " of it is left\n"
    )


def test_scaling_is_removed_although_somebody_else_removed_the_endpoint(
    cloud: Cloud, versions: None, run: Run
) -> None:
    run("deploy", "1", "--max-instances", "4")
    client("sagemaker").delete_endpoint(EndpointName="alexmri")
    run("delete", "alexmri", "--yes")
    assert target() is None
    assert client("sagemaker").list_endpoint_configs()["EndpointConfigs"] == []


def test_a_detached_endpoint_scales_when_the_same_command_finds_it_serving(
    cloud: Cloud, versions: None, run: Run
) -> None:
    command = ("deploy", "1", "--max-instances", "4", "--detach")
    state = {
        "EndpointName": "alexmri",
        "EndpointArn": "arn:aws:sagemaker:us-east-1:123456789012:endpoint/alexmri",
        "EndpointConfigName": "c",
        "EndpointStatus": "Creating",
    }
    cloud.answers["DescribeEndpoint"] = lambda body: (
        (200, state) if cloud.sent("CreateEndpoint") else None
    )
    run(*command)
    assert target() is None
    cloud.answers.pop("DescribeEndpoint")
    run(*command)
    assert bounds() == (1, 4)


# --- asynchronous


def test_an_asynchronous_endpoint_has_no_instance_while_nothing_waits(
    cloud: Cloud, versions: None, run: Run
) -> None:
    command = ("deploy", "1", "--async", "--notify", TOPIC)
    done = run("--kms-key", "alias/k", *command)
    assert "alexmri runs on 0 to 1 x ml.m5.large" in done.stdout
    (settings,) = cloud.sent("CreateEndpointConfig")
    place = f"s3://{BUCKET}/alexmri/async/alexmri"
    assert settings["AsyncInferenceConfig"]["OutputConfig"] == {
        "S3OutputPath": f"{place}/answers",
        "S3FailurePath": f"{place}/failures",
        "KmsKeyId": "alias/k",
        "NotificationConfig": {"SuccessTopic": TOPIC, "ErrorTopic": TOPIC},
    }
    # It starts with one, so that a model that does not load is found out.
    assert settings["ProductionVariants"][0]["InitialInstanceCount"] == 1
    assert bounds() == (0, 1)
    found = policies()
    tracking = found["alexmri-alexmri-tracking"]["TargetTrackingScalingPolicyConfiguration"]
    dimensions = [{"Name": "EndpointName", "Value": "alexmri"}]
    assert tracking["CustomizedMetricSpecification"] == {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": dimensions,
        "Statistic": "Average",
    }
    first = found["alexmri-alexmri-first"]
    assert first["StepScalingPolicyConfiguration"]["StepAdjustments"] == [
        {"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}
    ]
    alarm = alarms()["alexmri-alexmri-backlog"]
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    assert alarm["AlarmActions"] == [first["PolicyARN"]]
    assert alarm["Dimensions"] == dimensions
    assert "serves version 1 already" in run("--kms-key", "alias/k", *command).stdout
    assert len(policies()) == 2


def test_answers_go_where_they_are_wanted(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1", "--async", "--s3-output", "s3://ours/there/", "--detach")
    (settings,) = cloud.sent("CreateEndpointConfig")
    output = settings["AsyncInferenceConfig"]["OutputConfig"]
    assert output == {
        "S3OutputPath": "s3://ours/there/answers",
        "S3FailurePath": "s3://ours/there/failures",
    }


def test_an_update_of_an_asynchronous_endpoint_starts_with_an_instance(
    cloud: Cloud, versions: None, run: Run
) -> None:
    """It may have none now, and then an update would try nothing."""
    updates(cloud)
    run("deploy", "1", "--async")
    run("deploy", "2", "--async")
    (update,) = cloud.sent("UpdateEndpoint")
    assert "RetainAllVariantProperties" not in update
    assert bounds() == (0, 1)


def test_invoke_says_where_the_answer_will_be(cloud: Cloud, versions: None, run: Run) -> None:
    run("deploy", "1", "--async")
    Path("a.png").write_bytes(b"picture")
    for _ in range(2):
        (told,) = map(json.loads, run("invoke", "--async", "a.png").stdout.splitlines())
        assert told["file"] == "a.png"
        assert told["answer_at"].startswith("s3://")
    (sent,) = keys("alexmri/async/alexmri/requests/")
    asked = [each for each in cloud.requests if "async-invocations" in each.target]
    assert len(asked) == 2
    assert sent.endswith(".png")


# --- serverless


def test_a_serverless_endpoint_has_neither_instances_nor_alarms(
    cloud: Cloud, versions: None, run: Run
) -> None:
    updates(cloud)
    options = ("--serverless", "--memory-mb", "2048", "--max-concurrency", "7")
    done = run("--kms-key", "alias/k", "deploy", "1", *options)
    assert "its image must be smaller than 10 GB" in done.stdout
    assert "it has no GPU" in done.stdout
    (settings,) = cloud.sent("CreateEndpointConfig")
    (variant,) = settings["ProductionVariants"]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 7}
    assert set(variant) == {"VariantName", "ModelName", "ServerlessConfig"}
    assert "KmsKeyId" not in settings
    run("deploy", "2", "--serverless")
    (update,) = cloud.sent("UpdateEndpoint")
    assert "DeploymentConfig" not in update
    assert "alexmri goes back" in run("rollback").stdout
    assert all("DeploymentConfig" not in each for each in cloud.sent("UpdateEndpoint"))
    assert alarms() == {}
    assert target() is None
    deleted = run("delete", "alexmri", "--yes").stdout
    assert "endpoint alexmri: serverless, paid by the request" in deleted
    assert "alarms" not in deleted


# --- what goes together


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--serverless", "--async"), "--serverless and --async exclude each other"),
        (("--serverless", "--gpu"), "a serverless endpoint has no GPU"),
        (("--serverless", "--max-instances", "2"), "a serverless endpoint has no instances"),
        (("--memory-mb", "2048"), "--memory-mb and --max-concurrency belong to --serverless"),
        (("--async", "--max-concurrency", "2"), "--memory-mb and --max-concurrency belong to"),
        (("--s3-output", "s3://b/c"), "--s3-output and --notify belong to --async"),
        (("--serverless", "--notify", TOPIC), "--s3-output and --notify belong to --async"),
        (("--async", "--s3-output", "answers"), "--s3-output answers is not an S3 address"),
        (("--async", "--notify", "me@here"), "--notify me@here is not an SNS topic"),
        (("--min-instances", "2"), "--min-instances goes with --max-instances; give both"),
        (("--min-instances", "0", "--max-instances", "2"), "cannot answer; give --min-instances"),
        (("--min-instances", "3", "--max-instances", "2"), "3 is more than --max-instances 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_contradict_each_other_are_refused_first(
    cloud: Cloud, run: Run, options: tuple[str, ...], words: str
) -> None:
    assert words in error_of(run("deploy", "1", *options, ok=False))
    assert cloud.requests == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (("--subnets", "s", "--security-groups", "g"), "cannot be in a VPC"),
        (("--data-capture-percent", "5"), "cannot capture data"),
    ],
)
def test_what_a_serverless_endpoint_lacks_is_refused_first(
    cloud: Cloud, run: Run, config: tuple[str, ...], words: str
) -> None:
    assert words in error_of(run(*config, "deploy", "1", "--serverless", ok=False))
    assert cloud.requests == []


@pytest.mark.parametrize("kind", ["--serverless", "--async"])
def test_an_endpoint_stays_of_its_kind(cloud: Cloud, versions: None, run: Run, kind: str) -> None:
    run("deploy", "1", kind)
    sent = len(cloud.sent("CreateModel"))
    told = error_of(run("deploy", "2", ok=False))
    assert "and an endpoint does not become real-time; choose another --endpoint" in told
    assert len(cloud.sent("CreateModel")) == sent


@pytest.mark.parametrize(
    "options",
    [("--max-instances", "4"), ("--async", "--notify", TOPIC), ("--serverless",)],
    ids=lambda options: options[0],
)
def test_a_dry_run_shows_valid_requests(
    cloud: Cloud, run: Run, valid: Any, options: tuple[str, ...]
) -> None:
    shown = json.loads(run("deploy", *options, "--dry-run").stdout)
    for step in shown:
        valid(step)
    calls = [step["call"] for step in shown]
    assert ("register_scalable_target" in calls) == (options != ("--serverless",))
    assert ("put_metric_alarm" in calls) == (options != ("--serverless",))
    assert cloud.requests == []
    (model,) = [step for step in shown if step["call"] == "create_model"]
    assert model["request"]["ModelName"] == "alexmri-v<newest approved>-<digest>"
    assert "a version is a whole number" in error_of(run("deploy", "three", "--dry-run", ok=False))


# --- cut off anywhere


class Cut:
    """Ctrl-C right behind the call number `after` that is sent, as a person might press it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.after, self.calls = 0, 0
        for name in ("call", "call_or_none"):
            monkeypatch.setattr(Aws, name, self._counting(getattr(Aws, name)))

    def _counting(self, send: Any) -> Any:
        def counted(aws: Aws, *request: Any) -> Any:
            answer = send(aws, *request)
            self.calls += 1
            if self.calls == self.after:
                raise KeyboardInterrupt
            return answer

        return counted

    def at(self, after: int) -> None:
        self.after, self.calls = after, 0


def test_a_deployment_that_was_cut_off_after_any_call_ends_as_if_it_was_not(
    cloud: Cloud, versions: None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates(cloud)
    cut, number, interrupted = Cut(monkeypatch), 0, True
    while interrupted:
        number += 1
        name = f"alexmri-{number}"
        deploy = ("deploy", "--endpoint", name, "--async")
        cut.at(0)
        run(*deploy, "1")
        cut.at(number)
        interrupted = run(*deploy, "2", ok=False).exit_code != 0
        cut.at(0)
        run(*deploy, "2")
        of_it = [each for each in cloud.sent("UpdateEndpoint") if each["EndpointName"] == name]
        assert len(of_it) == 1
        found = client("sagemaker").describe_endpoint(EndpointName=name)
        assert found["EndpointConfigName"] == of_it[0]["EndpointConfigName"]
        scaled = client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace="sagemaker", ResourceIds=[f"endpoint/{name}/variant/AllTraffic"]
        )["ScalableTargets"]
        assert len(scaled) == 1
    assert number > 10
