"""Versions of the model: registered with what they are worth and where they come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexmri.aws.client import Aws, Call
from alexmri.aws.config import digest_of
from alexmri.aws.image import cuda_in, find_cpu_image, revision_in
from alexmri.aws.jobs import bucket_and_key, describe, fetch, results_address
from alexmri.aws.requests.registry import (
    CPU,
    FIGURES,
    approval_request,
    group_request,
    package_arn,
    package_request,
    specification_in,
)
from alexmri.aws.requests.training import fingerprint_in
from alexmri.aws.upload import encryption
from alexmri.contract.archive import unpack
from alexmri.errors import UserError
from alexmri.files import parse_json_object, read_json_object, temporary_folder
from alexmri.terminal import Terminal

# What a version keeps of a training's results, beside the model.
KEPT = ("evaluation.json", "statistics.json", "audit.json", "report.html")


def register(aws: Aws, job: str, terminal: Terminal) -> str:
    """Make a version of the model that `job` trained, unless there is one; return its ARN.

    Raises:
        UserError: the job is not completed, or left no results.
    """
    described = describe(aws, job)
    if described["TrainingJobStatus"] != "Completed":
        raise UserError(
            f"{job} is {described['TrainingJobStatus']}; only what a completed training left is"
            " registered"
        )
    ensure_group(aws, terminal)
    model = str(described["ModelArtifacts"]["S3ModelArtifacts"])
    for package in packages(aws):
        known = describe_package(aws, package["ModelPackageArn"])
        containers = known.get("InferenceSpecification", {}).get("Containers", [{}])
        if containers[0].get("ModelDataUrl") == model:
            terminal.say(f"{job} is registered already")
            return str(package["ModelPackageArn"])
    image = str(described["AlgorithmSpecification"]["TrainingImage"])
    with temporary_folder("alexmri-results-") as folder:
        results = folder / "results"
        results.mkdir()
        archive = folder / "output.tar.gz"
        if not fetch(aws, results_address(described, "output.tar.gz"), archive):
            raise UserError(f"{job} has left no {results_address(described, 'output.tar.gz')}")
        unpack(archive, results)
        # The platform packs output/data as it is; the SDK's local mode with data/ before it.
        if not (results / "evaluation.json").is_file() and (results / "data").is_dir():
            results = results / "data"
        kept = _keep(aws, job, results)
        facts = facts_of(described, results)
    facts["git_revision"] = revision_in(aws, image)
    for name in ("evaluation", "audit"):
        if f"{name}.json" in kept:
            facts[name] = kept[f"{name}.json"]
    request = package_request(
        aws.config,
        image=image,
        model=model,
        statistics=kept.get("statistics.json"),
        metadata=facts,
        cpu_image=find_cpu_image(aws, image, facts["git_revision"]),
    )
    # Request for twice at the same moment, SageMaker makes one version.
    request["ClientToken"] = digest_of({"model": model}, 32)
    return str(aws.call("sagemaker", "create_model_package", request)["ModelPackageArn"])


def register_calls(aws_config: Any, job: str) -> list[Call]:
    """Return what `register` does; what the job left stands in angle brackets."""
    request = package_request(
        aws_config,
        image="<image of the job>",
        model=f"<model of {job}>",
        statistics=aws_config.address("versions", job, "statistics.json"),
        metadata={
            "training_job": job,
            "git_revision": "<tag of the image>",
            "data": "<address of the training data>",
            "data_fingerprint": "<fingerprint of the images>",
            "evaluation": aws_config.address("versions", job, "evaluation.json"),
        },
    )
    place = {"Bucket": aws_config.require("bucket")}
    return [
        Call("sagemaker", "describe_training_job", {"TrainingJobName": job}),
        Call("sagemaker", "create_model_package_group", group_request(aws_config)),
        Call("sagemaker", "list_model_packages", {"ModelPackageGroupName": aws_config.name}),
        *(
            Call(
                "s3",
                "put_object",
                place | {"Key": f"{aws_config.prefix}/versions/{job}/{name}"},
            )
            for name in KEPT
        ),
        Call("sagemaker", "create_model_package", request),
    ]


def ensure_group(aws: Aws, terminal: Terminal) -> None:
    """Make the model package group where it is not there."""
    name = {"ModelPackageGroupName": aws.config.name}
    if aws.call_or_none("sagemaker", "describe_model_package_group", name) is None:
        aws.call("sagemaker", "create_model_package_group", group_request(aws.config))
        terminal.say(f"made the model group {aws.config.name}")


def facts_of(described: Mapping[str, Any], results: Path) -> dict[str, str]:
    """Return where a model comes from and what it is worth, as strings for the registry."""
    channels = {
        each["ChannelName"]: str(each["DataSource"]["S3DataSource"]["S3Uri"])
        for each in described["InputDataConfig"]
    }
    data = channels.get("training") or channels.get("train") or next(iter(channels.values()))
    facts = {
        "training_job": str(described["TrainingJobName"]),
        "data": data,
        "data_upload": fingerprint_in(data),
    }
    audit = _read(results / "audit.json")
    if audit.get("fingerprint"):
        facts["data_fingerprint"] = str(audit["fingerprint"])
    evaluation = _read(results / "evaluation.json")
    if evaluation:
        facts["split_by"] = str(evaluation["protocol"]["split_by"])
        facts["subjects_shared"] = str(evaluation["protocol"].get("subjects_shared"))
    for name in FIGURES:
        figure = (evaluation.get("test") or {}).get(name)
        if figure:
            low, high = figure["ci95"] or (None, None)
            # No brackets: metadata takes letters, digits and _.:/=+-@ alone.
            interval = "" if low is None else f" from {low:.4f} to {high:.4f}"
            facts[f"test_{name}"] = f"{figure['value']:.4f}{interval}"
    return facts


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) or {}


def _keep(aws: Aws, job: str, results: Path) -> dict[str, str]:
    """Copy what a version keeps to a place of its own; return name -> S3 address."""
    kept = {}
    for name in KEPT:
        path = results / name
        if not path.is_file():
            continue
        place = {
            "Bucket": aws.config.require("bucket"),
            "Key": f"{aws.config.prefix}/versions/{job}/{name}",
        }
        aws.call(
            "s3",
            "put_object",
            {
                **place,
                "Body": path.read_bytes(),
                "ContentType": "text/html" if name.endswith(".html") else "application/json",
                "ChecksumAlgorithm": "SHA256",
                **encryption(aws.config),
            },
        )
        kept[name] = f"s3://{place['Bucket']}/{place['Key']}"
    return kept


def packages(aws: Aws) -> list[dict[str, Any]]:
    """Return the versions of our group, newest first."""
    request = {"ModelPackageGroupName": aws.config.name}
    pages = aws.pages("sagemaker", "list_model_packages", request, "ModelPackageSummaryList")
    return sorted(pages, key=lambda each: -int(each.get("ModelPackageVersion") or 0))


def describe_package(aws: Aws, package: str) -> dict[str, Any]:
    """Return DescribeModelPackage; UserError where there is no such version."""
    found = aws.call_or_none("sagemaker", "describe_model_package", {"ModelPackageName": package})
    if found is None:
        raise UserError(
            f"there is no version {package.rpartition('/')[2]} of {aws.config.name}; `alexmri aws"
            " versions` lists what there is"
        )
    return found


def decide(aws: Aws, version: str, status: str, reason: str | None) -> str:
    """Approve or reject a version; say what it is now."""
    arn = package_arn(aws.config, aws.region, version)
    if describe_package(aws, arn)["ModelApprovalStatus"] == status:
        return f"version {arn.rpartition('/')[2]} is {status} already"
    aws.call("sagemaker", "update_model_package", approval_request(arn, status, reason))
    return f"version {arn.rpartition('/')[2]} is {status}"


def choose_version(aws: Aws, version: str | None, *, any_version: bool) -> str:
    """Return the ARN of `version`, or of the newest approved one.

    Raises:
        UserError: there is none, or it is not approved and `any_version` does not allow that.
    """
    if version is None:
        for package in packages(aws):
            if any_version or package.get("ModelApprovalStatus") == "Approved":
                return str(package["ModelPackageArn"])
        raise UserError(
            f"{aws.config.name} has no approved version; `alexmri aws versions` lists what there"
            " is, `alexmri aws approve VERSION` approves one"
        )
    arn = package_arn(aws.config, aws.region, version)
    status = describe_package(aws, arn).get("ModelApprovalStatus")
    if status != "Approved" and not any_version:
        raise UserError(
            f"version {version} is {status}; `alexmri aws approve {version}` approves it, or pass"
            " --unapproved"
        )
    return arn


def cuda_of(aws: Aws, package: str) -> str:
    """Return for which CUDA the image of a version was built, as its tag tells, or `cuda`."""
    known = describe_package(aws, package).get("CustomerMetadataProperties") or {}
    return cuda_in(known.get("git_revision", "")) or aws.config.cuda


def cpu_specification(aws: Aws, package: str) -> str | None:
    """Return which specification of a version serves without a GPU, None where it has but one."""
    return CPU if specification_in(describe_package(aws, package), CPU) else None


def data_fingerprint(aws: Aws, metadata: Mapping[str, str]) -> str | None:
    """Return the fingerprint of the images that a version was made from, None if it is lost.

    A version made by a pipeline has it in the audit that was kept with it.
    """
    if "data_fingerprint" in metadata or "audit" not in metadata:
        return metadata.get("data_fingerprint")
    found = (_document_at(aws, metadata["audit"]) or {}).get("fingerprint")
    return str(found) if found else None


def _document_at(aws: Aws, address: str) -> dict[str, Any] | None:
    bucket, key = bucket_and_key(address)
    found = aws.call_or_none("s3", "get_object", {"Bucket": bucket, "Key": key})
    if found is None:
        return None
    return parse_json_object(found["Body"].read(), address)
