"""The image without CUDA in ECR: pushed beside the other one, used where there is no GPU."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import BUCKET, REVISION, Cloud, Run, client, error_of, put
from .test_registry import train

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def cpu_image(image: str) -> str:
    """The CPU image of the same revision, in ECR; return its name with its digest."""
    layer = {"mediaType": "x", "size": 1, "digest": "sha256:" + "cd" * 32}
    manifest = {"schemaVersion": 2, "mediaType": DOCKER, "config": layer, "layers": [layer]}
    made = client("ecr").put_image(
        repositoryName="alexmri", imageManifest=json.dumps(manifest), imageTag=f"{REVISION}-cpu"
    )
    return f"{image.partition('@')[0]}@{made['image']['imageId']['imageDigest']}"


@pytest.fixture
def version(cloud: Cloud, here: None, image: str, cpu_image: str, run: Run) -> None:
    """A version whose revision has both images; moto forgets one of them upon an approval."""
    run("register", train(image))


def test_a_version_names_both_images(
    cloud: Cloud,
    image: str,
    cpu_image: str,
    version: None,
    valid: Callable[[dict[str, Any]], None],
) -> None:
    (request,) = cloud.sent("CreateModelPackage")
    assert request["InferenceSpecification"]["Containers"][0]["Image"] == image
    (additional,) = request["AdditionalInferenceSpecifications"]
    (container,) = additional["Containers"]
    assert (additional["Name"], container["Image"]) == ("cpu", cpu_image)
    assert (
        container["ModelDataUrl"]
        == (request["InferenceSpecification"]["Containers"][0]["ModelDataUrl"])
    )
    valid({"service": "sagemaker", "call": "create_model_package", "request": request})


@pytest.mark.parametrize(
    ("options", "specification"),
    [((), "cpu"), (("--serverless",), "cpu"), (("--async",), "cpu"), (("--gpu",), None)],
)
def test_an_endpoint_without_a_gpu_uses_the_small_one(
    cloud: Cloud, version: None, run: Run, options: tuple[str, ...], specification: str | None
) -> None:
    run("deploy", "--unapproved", *options, "--detach")
    (request,) = cloud.sent("CreateModel")
    assert request["PrimaryContainer"].get("InferenceSpecificationName") == specification


def test_a_transform_without_a_gpu_uses_the_small_one(
    cloud: Cloud, version: None, run: Run
) -> None:
    put("pictures/a.png", b"x")
    run("transform", f"s3://{BUCKET}/pictures", "--unapproved", "--detach")
    (request,) = cloud.sent("CreateModel")
    assert request["PrimaryContainer"]["InferenceSpecificationName"] == "cpu"


def test_the_trace_names_the_image_that_serves(
    cloud: Cloud, cpu_image: str, version: None, run: Run
) -> None:
    run("deploy", "--unapproved", "--detach")
    found = json.loads(run("trace", "alexmri", "--json", ok=False).stdout)
    assert found["image_digest"] == cpu_image.partition("@")[2]
    assert found["git_revision"] == REVISION
    assert found["doubts"] == {"version": "it serves, but is PendingManualApproval"}


@pytest.mark.parametrize(
    "command",
    [("deploy", "--gpu"), ("--transform-instance", "ml.g5.xlarge", "transform", "s3://b/x")],
)
def test_an_image_without_cuda_is_not_put_on_a_gpu(
    cloud: Cloud, here: None, image: str, cpu_image: str, run: Run, command: tuple[str, ...]
) -> None:
    run("register", train(cpu_image))
    told = error_of(run(*command, "--unapproved", ok=False))
    assert "has a GPU, which an image built with TORCH_CUDA=cpu cannot use" in told
    assert not cloud.sent("CreateModel")
