"""The requests that serve a model version: plain dicts, made from a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alexmri.aws.config import AwsConfig, digest_of
from alexmri.errors import UserError

# The driver of a GPU by the CUDA of the image (API reference, ProductionVariant). An image for CUDA
# 12 on the newer one stays in Creating without a log (aws/deep-learning-containers#6187).
INFERENCE_AMIS = {
    "cu126": "al2-ami-sagemaker-inference-gpu-3-1",
    "cu130": "al2023-ami-sagemaker-inference-gpu-4-1",
}
# The newest one of batch transforms: driver 535, new enough for CUDA 12. CUDA 13 needs its
# compatibility libraries there (autogluon/autogluon-cloud#270, for three families).
BATCH_AMI = "al2-ami-sagemaker-batch-gpu-535"
BATCH_FAMILIES_CU130 = ("g4dn", "g5", "g6")
VARIANT = "AllTraffic"
REAL_TIME, SERVERLESS, ASYNCHRONOUS = "real-time", "serverless", "asynchronous"


@dataclass(frozen=True, slots=True)
class Hosting:
    """How an endpoint serves: on instances, answering at once, unless `kind` says otherwise.

    Attributes:
        kind: REAL_TIME, SERVERLESS or ASYNCHRONOUS.
        memory_mb: of a serverless endpoint; max_concurrency: how many requests it works on at once.
        s3_output: where an asynchronous endpoint writes answers (default: below our prefix).
        notify: ARN of the SNS topic that is told of each of them.
    """

    kind: str
    memory_mb: int
    max_concurrency: int
    s3_output: str | None
    notify: str | None


def has_gpu(instance: str) -> bool:
    """Tell by its family whether an instance has an NVIDIA GPU."""
    family = instance.split(".")[1]
    return family.startswith(("g4", "g5", "g6", "g7", "p2", "p3", "p4", "p5", "p6")) and (
        not family.startswith("g5g")
    )


def model_request(
    config: AwsConfig, package: str, specification: str | None = None
) -> dict[str, Any]:
    """Return CreateModel for the model package with the ARN `package`.

    `specification` names the one of its additional inference specifications that is to serve.
    """
    container: dict[str, Any] = {"ModelPackageName": package}
    if specification:
        container["InferenceSpecificationName"] = specification
    request: dict[str, Any] = {
        "ExecutionRoleArn": config.role_for("endpoint"),
        "PrimaryContainer": container,
        "Tags": config.tag_list(version=package.rpartition("/")[2]),
    }
    if config.vpc:
        request["VpcConfig"] = config.vpc
    version = package.rpartition("/")[2]
    unknown = version.startswith("<")
    digest = "<digest>" if unknown else digest_of({**request, "Tags": None}, 8)
    name = f"{config.name}-v{version}-{digest}"
    return {"ModelName": name, **request}


def endpoint_config_request(
    config: AwsConfig, endpoint: str, model: str, hosting: Hosting
) -> dict[str, Any]:
    """Return CreateEndpointConfig; the name is a digest of what it says, so equal ones are one."""
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model}
    request: dict[str, Any] = {"ProductionVariants": [variant]}
    if hosting.kind == SERVERLESS:
        variant["ServerlessConfig"] = {
            "MemorySizeInMB": hosting.memory_mb,
            "MaxConcurrency": hosting.max_concurrency,
        }
    else:
        variant |= _instances(config)
        if config.kms_key and not has_local_disk(config.endpoint_instance):
            request["KmsKeyId"] = config.kms_key
    if hosting.kind == ASYNCHRONOUS:
        request["AsyncInferenceConfig"] = _async_config(config, endpoint, hosting)
    if config.data_capture_percent:
        capture: dict[str, Any] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": config.data_capture_percent,
            "DestinationS3Uri": config.address("capture", endpoint),
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
        }
        if config.kms_key:
            capture["KmsKeyId"] = config.kms_key
        request["DataCaptureConfig"] = capture
    # The endpoint counts too: long names begin alike.
    name = f"{endpoint[:54]}-{digest_of({**request, 'endpoint': endpoint}, 8)}"
    return {"EndpointConfigName": name, **request, "Tags": config.tag_list(endpoint=endpoint)}


def _instances(config: AwsConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "InstanceType": config.endpoint_instance,
        "InitialInstanceCount": config.endpoint_instances,
        "ModelDataDownloadTimeoutInSeconds": config.startup_seconds,
        "ContainerStartupHealthCheckTimeoutInSeconds": config.startup_seconds,
    }
    if has_gpu(config.endpoint_instance):
        _require_cuda(config, f"endpoint_instance {config.endpoint_instance}")
        found["InferenceAmiVersion"] = INFERENCE_AMIS[config.cuda]
    return found


def _require_cuda(config: AwsConfig, what: str) -> None:
    if config.cuda == "cpu":
        raise UserError(
            f"{what} has a GPU, which an image built with TORCH_CUDA=cpu cannot use; take an"
            " instance without a GPU, or a version that another image trained"
        )


def _async_config(config: AwsConfig, endpoint: str, hosting: Hosting) -> dict[str, Any]:
    place = (hosting.s3_output or config.address("async", endpoint)).rstrip("/")
    output: dict[str, Any] = {
        "S3OutputPath": f"{place}/answers",
        "S3FailurePath": f"{place}/failures",
    }
    if config.kms_key:
        output["KmsKeyId"] = config.kms_key
    if hosting.notify:
        topics = {"SuccessTopic": hosting.notify, "ErrorTopic": hosting.notify}
        output["NotificationConfig"] = topics
    return {"OutputConfig": output}


def kind_of(described: Mapping[str, Any]) -> str:
    """Return which kind of endpoint a configuration is for."""
    if "AsyncInferenceConfig" in described:
        return ASYNCHRONOUS
    serverless = any("ServerlessConfig" in each for each in described["ProductionVariants"])
    return SERVERLESS if serverless else REAL_TIME


def has_local_disk(instance: str) -> bool:
    """Tell whether AWS refuses a key for the disk: that of the instance itself has its own."""
    family = instance.split(".")[1]
    return family.startswith(("g4dn", "g5", "g6", "g7", "p3dn", "p4", "p5", "p6")) or (
        family.endswith("d")
    )


def alarm_requests(config: AwsConfig, endpoint: str) -> list[dict[str, Any]]:
    """Return PutMetricAlarm for the alarms that undo an update: errors, latency."""
    dimensions = [
        {"Name": "EndpointName", "Value": endpoint},
        {"Name": "VariantName", "Value": VARIANT},
    ]
    common: dict[str, Any] = {
        "Namespace": "AWS/SageMaker",
        "Dimensions": dimensions,
        "Period": 60,
        "EvaluationPeriods": 2,
        "ComparisonOperator": "GreaterThanThreshold",
        # An endpoint without requests is not a broken one.
        "TreatMissingData": "notBreaching",
        "Tags": config.tag_list(endpoint=endpoint),
    }
    errors, latency = alarm_names(config, endpoint)
    return [
        {
            "AlarmName": errors,
            "AlarmDescription": f"share of requests to {endpoint} that fail; undoes updates",
            "MetricName": "Invocation5XXErrors",
            # Of a metric that is 0 or 1 for each request this is the share.
            "Statistic": "Average",
            "Threshold": config.alarm_error_percent / 100,
            **common,
        },
        {
            "AlarmName": latency,
            "AlarmDescription": f"latency of {endpoint} in microseconds; undoes updates",
            "MetricName": "ModelLatency",
            "ExtendedStatistic": "p90",
            "Threshold": config.alarm_latency_ms * 1000,
            **common,
        },
    ]


def alarm_names(config: AwsConfig, endpoint: str) -> tuple[str, str]:
    """Return the names of the alarms of an endpoint; no other endpoint has the same ones.

    All begin with `name` of the configuration, to which the permissions are confined.
    """
    start = f"{config.name}-{endpoint}"
    return f"{start}-5xx", f"{start}-latency"


def endpoint_request(
    config: AwsConfig, endpoint: str, endpoint_config: str, instances: str | None
) -> dict[str, Any]:
    """Return CreateEndpoint; `instances` is kept with it, the wish for its scaling."""
    tags = {"endpoint": endpoint} | ({"instances": instances} if instances else {})
    return {
        "EndpointName": endpoint,
        "EndpointConfigName": endpoint_config,
        "Tags": config.tag_list(**tags),
    }


def update_request(
    config: AwsConfig, endpoint: str, endpoint_config: str, *, kind: str, scaled: bool
) -> dict[str, Any]:
    """Return UpdateEndpoint: new instances beside the old ones, undone when an alarm goes off.

    Under load a scaled endpoint keeps its number of instances. An asynchronous one starts with the
    configuration's: it may have none now, which would try nothing.
    """
    request: dict[str, Any] = {"EndpointName": endpoint, "EndpointConfigName": endpoint_config}
    if kind == SERVERLESS:
        return request
    if scaled and kind == REAL_TIME:
        request["RetainAllVariantProperties"] = True
    return {
        **request,
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": {
                    "Type": "ALL_AT_ONCE",
                    "WaitIntervalInSeconds": 300,
                },
                "TerminationWaitInSeconds": 300,
                "MaximumExecutionTimeoutInSeconds": 3600,
            },
            "AutoRollbackConfiguration": {
                "Alarms": [{"AlarmName": name} for name in alarm_names(config, endpoint)]
            },
        },
    }


def transform_request(
    config: AwsConfig, *, model: str, source: str, content_type: str
) -> dict[str, Any]:
    """Return CreateTransformJob: one request for each image below the S3 address `source`.

    Raises:
        UserError: no driver of a batch transform fits image and instance.
    """
    instance = config.transform_instance
    request: dict[str, Any] = {
        "ModelName": model,
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": 6,
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": 60, "InvocationsMaxRetries": 2},
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": content_type,
            "SplitType": "None",
        },
        "TransformOutput": {"Accept": "application/json", "S3OutputPath": ""},
        "TransformResources": {"InstanceType": instance, "InstanceCount": 1},
    }
    if has_gpu(instance):
        _require_cuda(config, f"transform_instance {instance}")
        if config.cuda == "cu130" and instance.split(".")[1] not in BATCH_FAMILIES_CU130:
            raise UserError(
                f"transform_instance {instance} has no driver for an image of CUDA 13 (cu130) in a"
                f" batch transform; take one of {', '.join(BATCH_FAMILIES_CU130)}, one without a"
                " GPU, or an image for cu126"
            )
        request["TransformResources"]["TransformAmiVersion"] = BATCH_AMI
    if config.kms_key:
        request["TransformOutput"]["KmsKeyId"] = config.kms_key
        if not has_local_disk(instance):
            request["TransformResources"]["VolumeKmsKeyId"] = config.kms_key
    name = f"{config.name}-transform-{digest_of(request, 10)}"
    request["TransformOutput"]["S3OutputPath"] = config.address("transform", name)
    return {"TransformJobName": name, **request, "Tags": config.tag_list()}
