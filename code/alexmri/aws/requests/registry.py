"""The requests to the model registry: plain dicts, made from the results of a training."""

from collections.abc import Mapping
from typing import Any

from alexmri.aws.config import AwsConfig
from alexmri.errors import UserError

# Figures that stand beside a version in the registry, for lists: name -> place in evaluation.json.
FIGURES = ("accuracy", "macro_f1")
# Images are sent one by one, and whatever the model answers is JSON.
IMAGE_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp")
LONGEST_VALUE = 256
# The inference specification of a version that names the image without CUDA.
CPU = "cpu"


def group_request(config: AwsConfig) -> dict[str, Any]:
    """Return CreateModelPackageGroup."""
    return {
        "ModelPackageGroupName": config.name,
        "ModelPackageGroupDescription": "AlexNet on brain-MRI slices; research, not for diagnosis",
        "Tags": config.tag_list(),
    }


def package_request(
    config: AwsConfig,
    *,
    image: str,
    model: str,
    statistics: str | None,
    metadata: Mapping[str, str],
    cpu_image: str | None = None,
) -> dict[str, Any]:
    """Return CreateModelPackage, waiting for an approval.

    Args:
        image: REPOSITORY@sha256:…
        model: S3 address of model.tar.gz.
        statistics: S3 address of statistics.json, None where nothing was measured on test images.
        metadata: who made it from what; see `registry.facts_of`.
        cpu_image: the image without CUDA, in which it can serve too.
    """
    request: dict[str, Any] = {
        "ModelPackageGroupName": config.name,
        "ModelPackageDescription": f"training job {metadata.get('training_job', 'unknown')}",
        "InferenceSpecification": _specification(image, model),
        "ModelApprovalStatus": "PendingManualApproval",
        "Domain": "COMPUTER_VISION",
        "Task": "IMAGE_CLASSIFICATION",
        "CustomerMetadataProperties": {
            key: value[:LONGEST_VALUE] for key, value in metadata.items()
        },
    }
    if "git_revision" in metadata:
        request["MetadataProperties"] = {
            "CommitId": metadata["git_revision"],
            "GeneratedBy": f"alexmri, training job {metadata.get('training_job', 'unknown')}",
        }
    if cpu_image:
        additional = {"Name": CPU, **_specification(cpu_image, model)}
        request["AdditionalInferenceSpecifications"] = [additional]
    if statistics:
        quality = {"Statistics": {"ContentType": "application/json", "S3Uri": statistics}}
        request["ModelMetrics"] = {"ModelQuality": quality}
    return request


def _specification(image: str, model: str) -> dict[str, Any]:
    digest = image.partition("@")[2]
    container = {"Image": image, "ModelDataUrl": model}
    return {
        "Containers": [container | ({"ImageDigest": digest} if digest else {})],
        "SupportedContentTypes": [*IMAGE_TYPES, "application/json"],
        "SupportedResponseMIMETypes": ["application/json", "text/csv"],
    }


def specification_in(version: Mapping[str, Any], name: str | None) -> dict[str, Any] | None:
    """Return the inference specification of a version: the one named `name`, None without it."""
    if name is None:
        return dict(version["InferenceSpecification"])
    found = version.get("AdditionalInferenceSpecifications") or []
    return next((dict(each) for each in found if each["Name"] == name), None)


def approval_request(package: str, status: str, reason: str | None) -> dict[str, Any]:
    """Return UpdateModelPackage: `status` is Approved or Rejected."""
    request = {"ModelPackageArn": package, "ModelApprovalStatus": status}
    return request | ({"ApprovalDescription": reason} if reason else {})


def package_arn(config: AwsConfig, region: str, version: str) -> str:
    """Return the ARN of a version of our group, whose name SageMaker writes in small letters.

    Raises:
        UserError: `version` is neither a number, an ARN nor in angle brackets.
    """
    if version.startswith("arn:"):
        return version
    number = version.removeprefix("v")
    if not number.isdecimal() and not number.startswith("<"):
        raise UserError(f"a version is a whole number, as in 3, and not '{version}'")
    partition = config.require("role").split(":")[1]
    place = f"{region}:{config.account}:model-package/{config.name.lower()}"
    return f"arn:{partition}:sagemaker:{place}/{number}"
