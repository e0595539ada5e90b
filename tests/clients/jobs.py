"""Requests as boto3 sends them; the low-level clients of both SDK generations take them too."""

from functools import cache
from typing import Any

from botocore.model import ServiceModel
from botocore.session import get_session
from botocore.validate import ParamValidator
from harness import BUCKET, HYPERPARAMETERS, ROLE

S3 = f"s3://{BUCKET}"
# Where local mode puts the model of the training `train`.
MODEL = f"{S3}/jobs/train/output/model.tar.gz"
ONE_INSTANCE = {"InstanceType": "local", "InstanceCount": 1}


@cache
def service() -> ServiceModel:
    return get_session().get_service_model("sagemaker")


def checked(operation: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return `request` if boto3 would send it."""
    shape = service().operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    return request


def training(image: str, name: str = "train", hosts: int = 1, **more: str) -> dict[str, Any]:
    """Return a request of CreateTrainingJob; `more` are further hyperparameters."""
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": image, "TrainingInputMode": "File"},
        "RoleArn": ROLE,
        "HyperParameters": HYPERPARAMETERS | more,
        "InputDataConfig": [
            {"ChannelName": "training", "DataSource": {"S3DataSource": prefix("data")}}
        ],
        "OutputDataConfig": {"S3OutputPath": f"{S3}/jobs"},
        "ResourceConfig": ONE_INSTANCE | {"InstanceCount": hosts, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
    }
    return checked("CreateTrainingJob", request)


def model(image: str) -> dict[str, Any]:
    request = {
        "ModelName": "model",
        "ExecutionRoleArn": ROLE,
        "PrimaryContainer": {"Image": image, "ModelDataUrl": MODEL, "Environment": {}},
    }
    return checked("CreateModel", request)


def endpoint_config() -> dict[str, Any]:
    variant = {
        "VariantName": "only",
        "ModelName": "model",
        "InstanceType": "local",
        "InitialInstanceCount": 1,
    }
    request = {"EndpointConfigName": "config", "ProductionVariants": [variant]}
    return checked("CreateEndpointConfig", request)


def transform() -> dict[str, Any]:
    """Return a request of CreateTransformJob: a folder of PNG pictures, one request for each."""
    request = {
        "TransformJobName": "transform",
        "ModelName": "model",
        # Else local mode takes for it what /execution-parameters answers, which has other words.
        "BatchStrategy": "SingleRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": prefix("batch")},
            "ContentType": "image/png",
            "SplitType": "None",
        },
        "TransformOutput": {"S3OutputPath": f"{S3}/answers", "Accept": "application/json"},
        "TransformResources": ONE_INSTANCE,
    }
    return checked("CreateTransformJob", request)


def processing(image: str) -> dict[str, Any]:
    """Return a request of CreateProcessingJob: `evaluate` with the model still packed."""
    request = {
        "ProcessingJobName": "evaluate",
        "RoleArn": ROLE,
        "AppSpecification": {"ImageUri": image, "ContainerEntrypoint": ["evaluate"]},
        "ProcessingResources": {"ClusterConfig": ONE_INSTANCE | {"VolumeSizeInGB": 10}},
        "ProcessingInputs": [
            processing_input("model", MODEL),
            processing_input("test", f"{S3}/data"),
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "evaluation",
                    "S3Output": {
                        "S3Uri": f"{S3}/evaluation",
                        "LocalPath": "/opt/ml/processing/evaluation",
                        "S3UploadMode": "EndOfJob",
                    },
                }
            ]
        },
    }
    return checked("CreateProcessingJob", request)


def processing_input(name: str, address: str) -> dict[str, Any]:
    source = {
        "S3Uri": address,
        "LocalPath": f"/opt/ml/processing/{name}",
        "S3DataType": "S3Prefix",
        "S3InputMode": "File",
    }
    return {"InputName": name, "S3Input": source}


def prefix(name: str) -> dict[str, str]:
    return {
        "S3DataType": "S3Prefix",
        "S3Uri": f"{S3}/{name}",
    }
