"""The requests that train: plain dicts, made from a configuration."""

import re
from collections.abc import Mapping
from typing import Any

from alexmri.aws.config import AwsConfig, digest_of
from alexmri.aws.requests.endpoints import has_local_disk
from alexmri.settings import Resolved
from alexmri.tracking import SECRET_VARIABLE

# Printed after every epoch, and once more, with the test figures, for the model that was saved.
NAMES = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_macro_f1",
    "images_per_second",
    "test_loss",
    "test_accuracy",
    "test_macro_f1",
)

# SageMaker searches every line of a log for every expression; the first group is the value. A name
# must begin its line or follow a blank, so that val_loss is not found in best_val_loss. The last
# value of a metric belongs to the model that was saved.
# No backslash: what is pasted into JSON, YAML and shells stays what it is.
METRIC_DEFINITIONS = tuple(
    {"Name": name, "Regex": f"(?:^|[ ;]){name}=([-+.0-9eE]+);"} for name in NAMES
)

OBJECTIVE = {"Type": "Maximize", "MetricName": "val_macro_f1"}

LOCAL_CHECKPOINTS = "/opt/ml/checkpoints"


def hyperparameters(resolved: Resolved) -> dict[str, str]:
    """Return the settings that were given, as the strings SageMaker takes.

    What comes of defaults and recipes is left to the image, which has the same ones.
    """
    values = resolved.settings.model_dump(mode="json")
    given = {
        key
        for key, source in resolved.sources.items()
        if source != "default" and not source.startswith("recipe ")
    }
    return {key: _text(values[key]) for key in values if key in given}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(f"{each:g}" for each in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)


def training_job(
    config: AwsConfig, *, image: str, data: Mapping[str, str], settings: Mapping[str, str]
) -> dict[str, Any]:
    """Return CreateTrainingJob without name, checkpoints and tags: the step of a pipeline.

    Args:
        image: REPOSITORY@sha256:…
        data: channel -> S3 address.
        settings: hyperparameters.
    """
    output: dict[str, str] = {"S3OutputPath": config.address("jobs")}
    resources: dict[str, Any] = {
        "InstanceType": config.training_instance,
        "InstanceCount": config.training_instances,
        "VolumeSizeInGB": config.volume_gb,
    }
    if config.kms_key:
        output["KmsKeyId"] = config.kms_key
        if not has_local_disk(config.training_instance):
            resources["VolumeKmsKeyId"] = config.kms_key
    request: dict[str, Any] = {
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "MetricDefinitions": list(METRIC_DEFINITIONS),
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "RoleArn": config.require("role"),
        "HyperParameters": dict(settings),
        "InputDataConfig": [_channel(name, address) for name, address in data.items()],
        "OutputDataConfig": output,
        "ResourceConfig": resources,
        "StoppingCondition": {"MaxRuntimeInSeconds": config.max_run_seconds},
        "EnableManagedSpotTraining": config.spot,
    }
    if config.spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = config.max_wait_seconds
    if config.retries:
        request["RetryStrategy"] = {"MaximumRetryAttempts": config.retries}
    if config.wandb_secret:
        request["Environment"] = {SECRET_VARIABLE: config.wandb_secret}
    if config.vpc:
        request["VpcConfig"] = config.vpc
    return request


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {
        "S3DataType": "S3Prefix",
        "S3DataDistributionType": "FullyReplicated",
        # "data/ab" is the start of "data/abc" too.
        "S3Uri": address if address.endswith("/") else f"{address}/",
    }
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def training_request(
    config: AwsConfig,
    *,
    image: str,
    revision: str,
    data: Mapping[str, str],
    settings: Mapping[str, str],
    name: str | None = None,
) -> dict[str, Any]:
    """Return CreateTrainingJob.

    Unless `name` is given, the name is a digest of the request: the same training has the
    same name, and the same prefix for its checkpoints, which no other training has.
    """
    job = training_job(config, image=image, data=data, settings=settings)
    name = name or f"{config.name}-{digest_of(job, 10)}"
    return {
        "TrainingJobName": name,
        **job,
        "CheckpointConfig": {
            "S3Uri": config.address("checkpoints", name),
            "LocalPath": LOCAL_CHECKPOINTS,
        },
        "Tags": config.tag_list(revision=revision, **data_tags(data)),
    }


def data_tags(data: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that name the data of each channel."""
    return {f"data_{channel}": fingerprint_in(place) for channel, place in data.items()}


def fingerprint_in(address: str) -> str:
    """Return the fingerprint that `alexmri aws upload` put into an address, or `unknown`."""
    found = re.search(r"/data/([0-9a-f]{16})(/|$)", address)
    return found.group(1) if found else "unknown"
