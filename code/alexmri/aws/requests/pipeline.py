"""The pipeline as SageMaker stores it: audit, train, evaluate, and a version if it is good enough.

    Audit -> Train -> Evaluate -> Check -> Register, or Stop with the reason

Each step is a request as boto3 takes it, without its name. SageMaker takes a step from its cache
where image, command, inputs, hyperparameters and checkpoints are the same ("Default cache key
attributes by pipeline step type" in its guide): so the image is named by its digest, and the place
of checkpoints does not depend on the execution, while that of results does.
"""

from collections.abc import Mapping
from typing import Any

from alexmri.aws.config import AwsConfig, digest_of
from alexmri.aws.requests.endpoints import has_local_disk
from alexmri.aws.requests.registry import package_request
from alexmri.aws.requests.training import LOCAL_CHECKPOINTS, training_job

VERSION = "2020-12-01"
# Below it everything of a processing job lies.
PROCESSING = "/opt/ml/processing"
CACHE = {"Enabled": True, "ExpireAfter": "P30D"}
RETRY = [
    {
        "ExceptionType": ["Step.SERVICE_FAULT", "Step.THROTTLING"],
        "IntervalSeconds": 30,
        "BackoffRate": 2.0,
        "MaxAttempts": 5,
    },
]
RETRY_JOB = [
    *RETRY,
    {
        "ExceptionType": ["SageMaker.JOB_INTERNAL_ERROR", "SageMaker.CAPACITY_ERROR"],
        "IntervalSeconds": 300,
        "BackoffRate": 2.0,
        "MaxAttempts": 5,
    },
]
Step = dict[str, Any]


def parameter(name: str) -> dict[str, str]:
    """Return the reference to a parameter."""
    return {"Get": f"Parameters.{name}"}


def pipeline_definition(
    config: AwsConfig,
    *,
    image: str,
    revision: str,
    data: str,
    test: str,
    settings: Mapping[str, str],
    leak_gate: bool,
) -> dict[str, Any]:
    """Return the definition.

    Args:
        image: REPOSITORY@sha256:…
        revision: the git revision the image was made from.
        data: S3 address to train on; test: the one to evaluate on. Defaults of parameters.
        settings: hyperparameters.
        leak_gate: also hold back a version where the audit finds that subjects are recognised.
    """
    return {
        "Version": VERSION,
        "Metadata": {"alexmri.revision": revision},
        "Parameters": [
            {"Name": "Data", "Type": "String", "DefaultValue": data},
            {"Name": "Test", "Type": "String", "DefaultValue": test},
            {
                "Name": "Checkpoints",
                "Type": "String",
                "DefaultValue": checkpoints(config, image=image, data=data, settings=settings),
            },
            {"Name": "MinMacroF1", "Type": "Float", "DefaultValue": 0.5},
            *(
                [{"Name": "MaxLeakScore", "Type": "Float", "DefaultValue": 0.6}]
                if leak_gate
                else []
            ),
        ],
        "Steps": [
            audit_step(config, image),
            train_step(config, image, settings),
            evaluate_step(config, image),
            check_step(config, image, revision, leak_gate),
        ],
    }


def checkpoints(config: AwsConfig, *, image: str, data: str, settings: Mapping[str, str]) -> str:
    """Return the address for the checkpoints of one training: the same one has the same."""
    job = training_job(config, image=image, data={"training": data}, settings=settings)
    return config.address("checkpoints", f"pipeline-{digest_of(job, 16)}")


def audit_step(config: AwsConfig, image: str) -> Step:
    """Return the step that looks at the data before anything is trained on it."""
    command = ["alexmri", "audit", f"{PROCESSING}/data", "--json", f"{PROCESSING}/audit/audit.json"]
    inputs = [_input("data", parameter("Data"))]
    return _processing_step(config, image, "Audit", command, inputs, leaves="audit")


def train_step(config: AwsConfig, image: str, settings: Mapping[str, str]) -> Step:
    """Return the training; it waits for the audit, whose faults would spoil it."""
    job = training_job(config, image=image, data={"training": "<data>"}, settings=settings)
    job["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = parameter("Data")
    job["CheckpointConfig"] = {"S3Uri": parameter("Checkpoints"), "LocalPath": LOCAL_CHECKPOINTS}
    return {
        "Name": "Train",
        "Type": "Training",
        "Arguments": job,
        "DependsOn": ["Audit"],
        "CacheConfig": CACHE,
        "RetryPolicies": RETRY_JOB,
    }


def evaluate_step(config: AwsConfig, image: str) -> Step:
    """Return the measurement of the trained model on the test data."""
    inputs = [
        _input("model", {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"}),
        _input("test", parameter("Test")),
    ]
    return _processing_step(config, image, "Evaluate", ["evaluate"], inputs, leaves="evaluation")


def _processing_step(
    config: AwsConfig,
    image: str,
    name: str,
    command: list[str],
    inputs: list[dict[str, Any]],
    *,
    leaves: str,
) -> Step:
    """Return a step that runs `command`; later steps read the JSON file it leaves."""
    arguments = _processing(config, image, command)
    arguments["ProcessingInputs"] = inputs
    arguments["ProcessingOutputConfig"] = _output(config, leaves)
    found = {
        "PropertyFileName": leaves.capitalize(),
        "OutputName": leaves,
        "FilePath": f"{leaves}.json",
    }
    return {
        "Name": name,
        "Type": "Processing",
        "Arguments": arguments,
        "PropertyFiles": [found],
        "CacheConfig": CACHE,
        "RetryPolicies": RETRY_JOB,
    }


def check_step(config: AwsConfig, image: str, revision: str, leak_gate: bool) -> Step:
    """Return the condition with what follows from it: a version, or the end with the reason."""
    macro_f1 = _from_file("Evaluate", "Evaluation", "test.macro_f1.value")
    own_images = _from_file("Evaluate", "Evaluation", "protocol.trained_on_these_images")
    leak = _from_file("Audit", "Audit", "leak_probe.shuffled")
    conditions = [
        {
            "Type": "GreaterThanOrEqualTo",
            "LeftValue": macro_f1,
            "RightValue": parameter("MinMacroF1"),
        },
        {"Type": "Equals", "LeftValue": own_images, "RightValue": False},
    ]
    reason: list[Any] = [
        "no version was registered: macro F1 is",
        macro_f1,
        "and must be at least",
        parameter("MinMacroF1"),
        "; measured on the very images of the training:",
        own_images,
    ]
    if leak_gate:
        conditions.append(
            {
                "Type": "LessThanOrEqualTo",
                "LeftValue": leak,
                "RightValue": parameter("MaxLeakScore"),
            }
        )
        reason += [
            "; the 1-NN baseline on labels shuffled between subjects scores",
            leak,
            "and may score at most",
            parameter("MaxLeakScore"),
        ]
    stop = {
        "Name": "Stop",
        "Type": "Fail",
        "Arguments": {"ErrorMessage": {"Std:Join": {"On": " ", "Values": reason}}},
    }
    return {
        "Name": "Check",
        "Type": "Condition",
        "Arguments": {
            "Conditions": conditions,
            "IfSteps": [register_step(config, image, revision)],
            "ElseSteps": [stop],
        },
        "DependsOn": ["Audit"],
    }


def register_step(config: AwsConfig, image: str, revision: str) -> Step:
    """Return the step that makes a version, waiting for an approval."""

    def file(step: str, output: str, name: str) -> Any:
        place = f"Steps.{step}.ProcessingOutputConfig.Outputs['{output}'].S3Output.S3Uri"
        return {"Std:Join": {"On": "/", "Values": [{"Get": place}, name]}}

    request = package_request(
        config,
        image=image,
        model="<model>",
        statistics="<statistics>",
        metadata={"git_revision": revision},
    )
    container = request["InferenceSpecification"]["Containers"][0]
    container["ModelDataUrl"] = {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"}
    request["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"] = file(
        "Evaluate", "evaluation", "statistics.json"
    )
    request["ModelPackageDescription"] = "made by the pipeline"
    request["MetadataProperties"]["GeneratedBy"] = {"Get": "Execution.PipelineExecutionArn"}
    request["CustomerMetadataProperties"] |= {
        "training_job": {"Get": "Steps.Train.TrainingJobName"},
        "data": parameter("Data"),
        "test": parameter("Test"),
        "evaluation": file("Evaluate", "evaluation", "evaluation.json"),
        "audit": file("Audit", "audit", "audit.json"),
    }
    return {
        "Name": "Register",
        "Type": "RegisterModel",
        "Arguments": request,
        "RetryPolicies": RETRY,
    }


def _processing(config: AwsConfig, image: str, command: list[str]) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "InstanceType": config.processing_instance,
        "InstanceCount": 1,
        "VolumeSizeInGB": config.volume_gb,
    }
    if config.kms_key and not has_local_disk(config.processing_instance):
        cluster["VolumeKmsKeyId"] = config.kms_key
    arguments: dict[str, Any] = {
        "RoleArn": config.require("role"),
        "AppSpecification": {"ImageUri": image, "ContainerEntrypoint": command},
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": {"MaxRuntimeInSeconds": 7200},
    }
    if config.vpc:
        arguments["NetworkConfig"] = {"VpcConfig": config.vpc}
    return arguments


def _input(name: str, address: Any) -> dict[str, Any]:
    source = {
        "S3Uri": address,
        "LocalPath": f"{PROCESSING}/{name}",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
        "S3DataDistributionType": "FullyReplicated",
    }
    return {"InputName": name, "S3Input": source}


def _output(config: AwsConfig, name: str) -> dict[str, Any]:
    parts = [config.address("pipeline"), {"Get": "Execution.PipelineExecutionId"}, name]
    place = {
        "S3Uri": {"Std:Join": {"On": "/", "Values": parts}},
        "LocalPath": f"{PROCESSING}/{name}",
        "S3UploadMode": "EndOfJob",
    }
    output: dict[str, Any] = {"Outputs": [{"OutputName": name, "S3Output": place}]}
    return output | ({"KmsKeyId": config.kms_key} if config.kms_key else {})


def _from_file(step: str, file: str, path: str) -> dict[str, Any]:
    place = {"Get": f"Steps.{step}.PropertyFiles.{file}"}
    return {"Std:JsonGet": {"PropertyFile": place, "Path": path}}
