"""Where the answers of an endpoint come from: version, image, revision, data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alexmri.aws.client import Aws
from alexmri.aws.endpoints import describe_endpoint
from alexmri.aws.image import revision_in, without_variant
from alexmri.aws.registry import data_fingerprint, describe_package
from alexmri.aws.requests.registry import specification_in
from alexmri.aws.requests.training import fingerprint_in


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain; `doubt` says where two accounts of it disagree."""

    what: str
    value: str
    doubt: str | None = None


def trace(aws: Aws, endpoint: str) -> Iterator[Link]:
    """Yield the chain from an endpoint to the data, each link as AWS tells it now."""
    found = describe_endpoint(aws, endpoint)
    yield Link("endpoint", f"{endpoint} ({found['EndpointStatus']})")
    name = str(found["EndpointConfigName"])
    yield Link("endpoint configuration", name)
    settings = aws.call("sagemaker", "describe_endpoint_config", {"EndpointConfigName": name})
    model = str(settings["ProductionVariants"][0]["ModelName"])
    yield Link("model", model)
    described = aws.call("sagemaker", "describe_model", {"ModelName": model})
    container = described.get("PrimaryContainer") or described["Containers"][0]
    package = container.get("ModelPackageName")
    if not package:
        yield Link("image", str(container.get("Image", "-")))
        yield Link("version", "none", "the model was made without the registry: no more is known")
        return
    version = describe_package(aws, package)
    status = str(version.get("ModelApprovalStatus"))
    doubt = None if status == "Approved" else f"it serves, but is {status}"
    yield Link("version", f"{package} ({status})", doubt)
    known = version.get("CustomerMetadataProperties") or {}
    trained_in = version["InferenceSpecification"]
    served = specification_in(version, container.get("InferenceSpecificationName")) or trained_in
    image = str(trained_in["Containers"][0]["Image"])
    yield from _origin(aws, served["Containers"][0], image, known)
    for figure in ("test_accuracy", "test_macro_f1", "split_by", "evaluation"):
        if figure in known:
            yield Link(figure.replace("_", " "), known[figure])


def _origin(
    aws: Aws, container: dict[str, Any], trained_in: str, known: dict[str, str]
) -> Iterator[Link]:
    yield Link("model file", str(container["ModelDataUrl"]))
    image = str(container["Image"])
    digest = str(container.get("ImageDigest") or image.partition("@")[2])
    yield Link("image", image.partition("@")[0])
    yield Link("image digest", digest or "-", None if digest else "the image has no digest")
    told = known.get("git_revision", "-")
    tagged = revision_in(aws, image) if digest else "unknown"
    doubt = None
    if tagged == "unknown":
        doubt = "the image is gone from ECR: only the registry tells it"
    elif without_variant(tagged) != without_variant(told):
        doubt = f"ECR says {tagged}"
    yield Link("git revision", told, doubt)
    job = known.get("training_job", "-")
    trained = aws.call_or_none("sagemaker", "describe_training_job", {"TrainingJobName": job})
    doubt = None
    if trained is None:
        doubt = "the job is gone: only the registry tells it"
    elif trained["AlgorithmSpecification"].get("TrainingImage") != trained_in:
        doubt = f"it ran {trained['AlgorithmSpecification'].get('TrainingImage')}"
    yield Link("training job", job, doubt)
    data = known.get("data", "-")
    yield Link("data", data)
    yield Link("data upload", known.get("data_upload", fingerprint_in(data)))
    fingerprint = data_fingerprint(aws, known)
    doubt = None if fingerprint else "no audit was kept"
    yield Link("data fingerprint", fingerprint or "-", doubt)
